"""Train DGUNet or DGUNet_plus for compressive sensing, Φ included.

    python train.py --cs_ratio 25 --opts TRAINING.TRAIN_DIR PHOTOS TRAINING.VAL_DIR SET11
    python train.py --config training_deblock.yml --cs_ratio 25 --opts …     step 2, from 1's best
    python train.py --config fast.yml --cs_ratio 25 --minutes 20 --opts TRAINING.TRAIN_DIR PHOTOS
    python train.py --opts TRAINING.RESUME True …                            go on with a run

training.yml and training_deblock.yml are the published recipe; fast.yml gets as near to its scores
as the minutes allow. PHOTOS is a folder of images, grey or colour, its sub-folders included.
MODEL.PHI FILE.npy (m×1024) trains for a fixed Φ of your own. docs/training.md explains the length,
GPUs and results of a run. All keys, which --opts KEY VALUE … overrides:
"""

from collections.abc import Mapping
from pathlib import Path

from dgunet.base.errors import InputError, command  # first: Ctrl-C then ends in a line

# isort: split
import numpy as np
import torch
from torch import Tensor
from yacs.config import CfgNode

from dgunet.Compressive_Sensing.data import (
    Photographs,
    principal_components,
    training_data,
    validation_data,
)
from dgunet.Compressive_Sensing.DGUNet import BLOCK, DGUNet
from dgunet.model.checkpoint import load_model
from dgunet.training import trainer as training
from dgunet.training.configuration import FILE, KEYS, Check, Key, multiple_of
from dgunet.training.losses import clamped_squared_error

RECIPE = {
    "OPTIM.SCHEDULE": "constant",
    "OPTIM.WARMUP_EPOCHS": 0,
    "DATA.REPEATS": 200,
    "DATA.HORIZONTAL_FLIP": Key(
        True, "flip crops left to right, too; the published code means to, but does not"
    ),
    "TRAINING.WORKERS": 0,
    "TRAINING.KEEP_EPOCHS": False,
    "TRAINING.TRAIN_PS": KEYS["TRAINING.TRAIN_PS"]._replace(check=multiple_of(BLOCK, BLOCK)),
    "TRAINING.VAL_PS": Key(
        256,
        "side of the tiles in which images are reconstructed in validation; 0: whole images",
        multiple_of(BLOCK, 0),
    ),
    "MODEL.CS_RATIO": Key(
        25,
        "compressive sensing ratio in percent",
        Check(lambda v: 1 <= v <= 100, "a percentage, 1 to 100"),
    ),
    "MODEL.PHI": Key("", "fixed Φ, which is not trained: a file .npy, m×1024", FILE, is_path=True),
    "MODEL.PHI_INIT": Key(
        "",
        "initial Φ: `pca`, the principal components of the photographs; empty: random",
        Check(lambda v: v in ("", "pca"), "pca, or '' for random values"),
    ),
    "MODEL.BODY_WEIGHTS": Key(
        "", "checkpoint of any ratio to start from, except for Φ", FILE, is_path=True
    ),
}


def paper(cfg: CfgNode) -> tuple[int, int, int]:
    """Return epochs, crops an epoch and batch size of the published training: of its first step
    for crops of one block, else of its second. BSD400 and DIV2K: 400 + 800 images."""
    return (400 if cfg.TRAINING.TRAIN_PS == BLOCK else 100), 200 * (400 + 800), 32


def prepare(model: DGUNet, cfg: CfgNode, photographs: Photographs, fresh: bool) -> None:
    """Give the model the Φ that the configuration asks for, and the weights of another ratio.
    Raises `InputError` for files of `MODEL.PHI` and `MODEL.BODY_WEIGHTS` that do not fit."""
    if cfg.MODEL.BODY_WEIGHTS and fresh:
        body, _ = load_model(cfg.MODEL.BODY_WEIGHTS, TASK.name, cfg.MODEL.NAME)
        if body.sizes | {"cs_ratio": 0} != model.sizes | {"cs_ratio": 0}:
            raise InputError(
                f"{cfg.MODEL.BODY_WEIGHTS}: sizes {body.sizes}, expected {model.sizes} of any ratio"
            )
        model.load_state_dict(body.state_dict() | {"A.Phi": model.A.Phi})
    phi = model.A.Phi
    if cfg.MODEL.PHI:
        phi.data.copy_(read_phi(cfg.MODEL.PHI, tuple(phi.shape), cfg.MODEL.CS_RATIO))
        phi.requires_grad_(False)
    elif cfg.MODEL.PHI_INIT == "pca" and fresh:
        phi.data.copy_(principal_components(photographs, len(phi)))


def remark(content: Mapping) -> str:
    """Return what to tell of the published configuration file, which has keys of image restoration
    and none of compressive sensing; nothing of others."""
    model, keys = (content.get(section) or {} for section in ("MODEL", "TRAINING"))
    if "VAL_AFTER_EVERY" not in keys or {"NAME", "CS_RATIO"} & set(model):
        return ""
    return (
        "seems to be the published training.yml, a leftover that the published scripts for "
        "compressive sensing never read; their recipe is in ours"
    )


def read_phi(path: str | Path, shape: tuple[int, int], ratio: int) -> Tensor:
    """Return Φ of a .npy file, float32. Raises `InputError` for another file or shape, and values
    that are not finite."""
    try:
        phi = np.load(path, allow_pickle=False)
        found = f"{phi.dtype} of shape {phi.shape}"
    except Exception as error:  # a damaged file can raise nearly anything
        raise InputError(f"{path}: not a readable .npy file ({error})") from error
    if phi.dtype.kind not in "fiu" or phi.shape != shape:
        raise InputError(f"{path}: holds {found}, expected floats {shape} for ratio {ratio}")
    phi = phi.astype(np.float32)
    if not np.isfinite(phi).all():
        raise InputError(f"{path}: holds values that are not finite")
    return torch.from_numpy(phi)


TASK = training.Task(
    "Compressive_Sensing",
    RECIPE,
    clamped_squared_error,
    training_data,
    validation_data,
    paper,
    prepare=prepare,
    shortcuts={
        "--cs_ratio": "MODEL.CS_RATIO",
        "--im_size": "TRAINING.TRAIN_PS TRAINING.VAL_PS",
        "--patch_size": "",  # which only names a file of Φ in the published code
    },
    remark=remark,
)


@command
def main() -> None:
    training.main(TASK, __doc__)


if __name__ == "__main__":
    main()
