"""The compiled networks against the reference outputs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dgunet.inference.prepared import prepare
from dgunet.model.checkpoint import load_model

OUTPUTS = Path(__file__).parents[1] / "fixtures" / "outputs"


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("case", ["Deraining.DGUNet", "Compressive_Sensing.DGUNet"])
def test_stage_images_of_the_compiled_model(case, synthetic, tmp_path):
    """One of either design; compiling takes half a minute each."""
    torch.save(synthetic.published_checkpoint(case), tmp_path / "published.pth")
    network, _ = load_model(tmp_path / "published.pth", case.split(".")[0])
    with np.load(OUTPUTS / f"{case}.npz") as arrays:
        reference = dict(arrays)
    with torch.inference_mode():
        stages = prepare(network, compile=True)(torch.from_numpy(reference["input"]))
    assert len(stages) == 7
    for k, image in enumerate(reversed(stages), 1):
        np.testing.assert_allclose(image, reference[f"stage{k}"], rtol=0, atol=1e-5)
