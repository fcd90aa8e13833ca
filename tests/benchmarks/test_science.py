"""Ablations, protocols and learning curves: what is compared is what the pages say."""

import ablations
import curves
import numpy as np
import protocols
import pytest
import torch
from scipy.ndimage import convolve
from sensing import network as small_sensing

from dgunet.images.files import write_image
from dgunet.model.checkpoint import save_checkpoint


def problem(name: str) -> ablations.Problem:
    """A problem without photographs."""
    found = object.__new__(ablations.PROBLEMS[name])
    phi = torch.linalg.qr(torch.randn(1024, 256))[0].T
    found.phi = lambda count: phi[:count]
    return found


def changed(name: str, label: str):
    """A variant's network, and how strongly each parameter moves the result."""
    torch.manual_seed(0)
    variant, of = ablations.VARIANTS[label], problem(name)
    network = of.network(variant)
    if variant.change:
        variant.change(of, network)
    image = torch.rand(1, network.channels, 32, 32)
    network(of.degrade(image, torch.Generator()))[0].square().mean().backward()
    moved = {
        key
        for key, p in network.named_parameters()
        if p.grad is not None and p.grad.abs().max() > 0
    }
    return network, moved


@pytest.mark.parametrize("name", ablations.PROBLEMS)
def test_variants_lack_what_they_say_and_nothing_else(name):
    full, of_full = changed(name, ablations.FULL)
    features = {"ipmm.0.sam.features", "ipmm.0.sam.attention"}
    parts = {
        "no ISFF": {"ipmm.1.fusion"},
        "no Merge": {*features, "ipmm.1.merge"},
        "no features handed on": {*features, "ipmm.1", "last.concat"},
        "no gradient step": {"fgdm"},
        "true operator, ρ = 1": {"fgdm"},
    }
    for label, names in parts.items():
        _, moved = changed(name, label)
        lacking = of_full - moved
        assert lacking and all(key.startswith(tuple(names)) for key in lacking), label
    _, moved = changed(name, "no features handed on")
    assert not any("fusion" in key or "sam.features" in key for key in moved)
    shared, own = (
        changed(name, label)[0] for label in ("5 stages", "5 stages, each with its own modules")
    )
    assert (len(shared.ipmm), len(own.ipmm)) == (2, 4)
    assert len(list(full.parameters())) == len(list(shared.parameters()))


def test_the_true_blur_and_its_adjoint():
    of = problem("deblurring")
    x, y = torch.rand(2, 1, 3, 24, 32).unbind()
    expected = convolve(x.numpy(), of.kernel[None, None], mode="wrap")
    np.testing.assert_allclose(of.blur(x).numpy(), expected, atol=1e-5)
    assert torch.allclose((of.blur(x) * y).sum(), (x * of.adjoint(y)).sum(), rtol=1e-4)


def test_differences_are_between_runs_of_one_seed():
    values = {
        f"{ablations.FULL}/1200/0": 30.0, f"{ablations.FULL}/1200/1": 31.0,
        f"{ablations.FULL}/8/0": 10.0, "no ISFF/1200/0": 29.5, "no ISFF/1200/1": 31.25,
        "2 stages/8/0": 9.0,
    }  # fmt: skip
    runs = {f"sensing/{key}": {"psnr": value} for key, value in values.items()}
    found = ablations.runs_of(runs, ablations.Sensing)
    assert list(found) == [ablations.FULL, "no ISFF"]
    assert ablations.differences(found, "no ISFF") == [-0.5, 0.25]
    assert ablations.differences(found, ablations.FULL) == [-0.5, 0.5]


def test_psnr_over_the_set_is_that_of_all_errors_together(tmp_path):
    rng, files = np.random.default_rng(0), []
    for number, contrast in enumerate((4, 60)):
        image = (128 + contrast * rng.standard_normal((64, 96))).clip(0, 255).astype(np.uint8)
        files.append(tmp_path / f"{number}.png")
        write_image(files[-1], image)
    weights = tmp_path / "any.safetensors"
    save_checkpoint(weights, small_sensing())
    found = protocols.run(weights, "the grey files", files, 32)
    alone = [protocols.run(weights, "the grey files", [file], 32)["float"][0] for file in files]
    assert found["images"] == 2 and found["float"][0] == pytest.approx(np.mean(alone), abs=1e-3)
    error = np.mean([10 ** (-psnr / 10) for psnr in alone])
    assert found["over the set"] == pytest.approx(-10 * np.log10(error), abs=1e-3)


def test_curves_without_a_long_log_have_no_slope():
    for rows in ([], [(8, 29.0)]):
        assert curves.Curve("", 8, rows, [], None).last_doubling is None
