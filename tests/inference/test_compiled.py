"""The compiled networks against the reference outputs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dgunet.inference.optimize import optimize_for_inference
from dgunet.model.checkpoint import load_model

OUTPUTS = Path(__file__).parents[1] / "fixtures" / "outputs"


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("case", ["Deraining.DGUNet", "Compressive_Sensing.DGUNet"])
def test_compiled_stage_images_are_the_published(case, synthetic, tmp_path):
    """One of either design; compiling takes half a minute each."""
    torch.save(synthetic.published_checkpoint(case), tmp_path / "published.pth")
    network, _ = load_model(tmp_path / "published.pth", case.split(".")[0])
    with np.load(OUTPUTS / f"{case}.npz") as arrays:
        reference = dict(arrays)
    with torch.inference_mode():
        compiled = optimize_for_inference(network, compile=True)
        stages = compiled(torch.from_numpy(reference["input"]))
    assert len(stages) == 7
    for k, image in enumerate(reversed(stages), 1):
        np.testing.assert_allclose(image, reference[f"stage{k}"], rtol=0, atol=1e-5)
