"""The figures of what networks do inside: what is drawn is what the networks compute."""

import json

import inside
import pytest
import torch
from networks import small
from pictures import noise

from dgunet.images.files import read_rgb, write_image
from dgunet.model.checkpoint import save_checkpoint
from dgunet.tools import figure


def small_network(task: str, model: str = "DGUNet", **sizes: int):
    """A network whose step sizes are 0.1, 0.2, … in the order of its modules."""
    network = small(task, model, **sizes)
    for number, fgdm in enumerate(network.fgdm, 1):
        fgdm.step_size.data.fill_(number / 10)
    return network


@pytest.mark.parametrize(
    "model, stages, expected",
    [("DGUNet", 5, [0.1, 0.2, 0.2, 0.2, 0.3]), ("DGUNet_plus", 4, [0.1, 0.2, 0.3, 0.4])],
)
@torch.no_grad()
def test_stages_are_those_of_the_forward_pass(model, stages, expected):
    network, y = small_network("Denoising", model, stages=stages), torch.rand(1, 3, 24, 32)
    images, results, sizes = inside.stages(network, y)
    assert sizes == pytest.approx(expected)
    for image, other in zip(images, [y, *network(y)[::-1]], strict=True):
        assert torch.equal(image[None], other)
    order = [0, *[1] * (stages - 2), -1] if model == "DGUNet" else range(stages)
    for x, v, index in zip(images, results, order, strict=False):
        torch.testing.assert_close(v[None], network.fgdm[index](x[None], y))


def test_draws_its_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(figure, "WIDTH", 3.0)
    for task in ("Deblurring", "Deraining"):
        monkeypatch.delitem(inside.SHOWN, task)
    networks = {"Denoising": small_network("Denoising", stages=2)}
    for ratio in (25, 10):
        sizes = {"stages": 3, "last_extra": 4, "cs_ratio": ratio}
        networks[f"DGUNet_{ratio}"] = small_network("Compressive_Sensing", **sizes)
    for name, network in networks.items():
        save_checkpoint(tmp_path / f"{name}.safetensors", network)
    record = {"cs_ratio": 25, "config": {"TRAINING": {"HOLD_OUT": 1, "TRAIN_PS": 32}}}
    (tmp_path / "DGUNet_25.json").write_text(json.dumps(record))
    for seed in range(3):
        write_image(tmp_path / "photos" / f"{seed}.png", noise(40, 50, seed=seed))
    files = {name: tmp_path / f"{name}.safetensors" for name in networks}
    files["Compressive_Sensing"] = files["DGUNet_25"]
    monkeypatch.setattr(inside, "find_weights", files.get)
    monkeypatch.setattr(inside, "default_weights", files.get)
    monkeypatch.setattr(inside, "principal_components", lambda *_: torch.randn(64, 1024) / 32)
    output = tmp_path / "out"
    inside.main(["--output", str(output), "--photos", str(tmp_path / "photos")])
    names = [f"inside_{task.lower()}.jpg" for task in inside.SHOWN] + ["inside_phi.jpg"]
    assert sorted(path.name for path in output.iterdir()) == sorted(names)
    assert all(read_rgb(output / name).std() > 10 for name in names)
