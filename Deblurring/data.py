"""Deblurring trains on pairs of a blurred and a sharp photograph."""

from yacs.config import CfgNode

from dgunet.data.crops import CropSource, training_set, validation_set


def training_data(cfg: CfgNode) -> CropSource:
    """As `training_set`, and the colour saturation of one sample in three scaled by U(0.8, 1.2),
    the same for both images."""
    return training_set(cfg, saturation=True)


validation_data = validation_set
