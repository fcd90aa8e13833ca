"""Deblurring trains on pairs of a blurred and a sharp photograph."""

from torch.utils.data import Dataset
from yacs.config import CfgNode

from restoration.data import ValidationImages, degradation, open_training_data


def training_data(cfg: CfgNode) -> Dataset:
    """Return the samples of `TRAINING.TRAIN_DIR`: random crops, moved one of nine ways,
    the colour saturation of one in three scaled by U(0.8, 1.2), the same for both images.

    Raises `InputError` for data that cannot be trained on."""
    return open_training_data(
        cfg.TRAINING.TRAIN_DIR,
        cfg.TRAINING.TRAIN_PS,
        cfg.SEED,
        saturation=True,
        degrade=degradation(cfg.DATA.DEGRADATION),
        grey=cfg.DATA.GREY,
        skip_corrupt=cfg.TRAINING.SKIP_CORRUPT,
    )


def validation_data(cfg: CfgNode) -> Dataset | None:
    """Return the centre crops of `TRAINING.VAL_DIR`; None where there is no such folder given."""
    if not cfg.TRAINING.VAL_DIR:
        return None
    return ValidationImages(
        cfg.TRAINING.VAL_DIR,
        cfg.TRAINING.VAL_PS,
        degrade=degradation(cfg.DATA.DEGRADATION),
        grey=cfg.DATA.GREY,
        skip_corrupt=cfg.TRAINING.SKIP_CORRUPT,
    )
