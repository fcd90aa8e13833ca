"""Denoising trains on pairs of a noisy and a clean photograph, or on clean photographs alone.

For the latter `DATA.DEGRADATION` names the noise, such as `gaussian25`. (MixUp blends whole
batches: the training loop does it.)
"""

from torch.utils.data import Dataset
from yacs.config import CfgNode

from restoration.data import ValidationImages, degradation, open_training_data


def training_data(cfg: CfgNode) -> Dataset:
    """Return the samples of `TRAINING.TRAIN_DIR`: random crops, moved one of nine ways.

    Raises `InputError` for data that cannot be trained on."""
    return open_training_data(
        cfg.TRAINING.TRAIN_DIR,
        cfg.TRAINING.TRAIN_PS,
        cfg.SEED,
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
