"""What the tests of compressive sensing share: small networks, pictures, running a program."""

import sys

import numpy as np
import pytest
import torch

from dgunet.model.registry import build_model

SMALL = {"width": 8, "width_step": 4, "last_extra": 4, "stages": 2}


def network(ratio: int = 10):
    torch.manual_seed(0)
    return build_model("Compressive_Sensing", "DGUNet", {**SMALL, "cs_ratio": ratio}).eval()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a smooth uint8 picture with some noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = np.sin(rows * rng.uniform(0.05, 0.3) + columns * rng.uniform(0.05, 0.3))
    return (127 + 90 * waves + rng.normal(0, 6, (height, width))).clip(0, 255).astype(np.uint8)


def run(module, *arguments) -> int:
    """Run a program in this process and return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        try:
            module.main()
        except SystemExit as end:
            return end.code
    return 0
