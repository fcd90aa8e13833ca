"""Exported files, run by onnxruntime, make the images that PyTorch makes."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from dgunet import Restorer, build_model, load_model
from dgunet.base.errors import InputError
from dgunet.base.files import sha256
from dgunet.model.checkpoint import save_checkpoint
from dgunet.model.pretrained import find_weights
from dgunet.tools.export import check, describe, export, run, solve_normal_equations

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

EXAMPLE = Path(__file__).parents[2] / "examples" / "restore_onnx.py"
SIZES = {"width": 8, "width_step": 4}
CASES = {  # name → task, model, sizes of a random network; of a trained one of denoising two stages
    "deblurring": ("Deblurring", "DGUNet_plus", {**SIZES, "stages": 2}),
    "sensing": ("Compressive_Sensing", "DGUNet", {**SIZES, "stages": 2, "cs_ratio": 10}),
    "denoising": (
        "Denoising",
        "DGUNet",
        {"width": 20, "width_step": 10, "last_extra": 8, "stages": 2},
    ),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function: name of a case, suffix, precision → weights, network, exported files."""
    folder, made = tmp_path_factory.mktemp("exported"), {}

    def make(name: str, suffix: str = ".onnx", precision: str = "float32"):
        key = f"{name}_{precision}{suffix}"
        if key in made:
            return made[key]
        task, model, sizes = CASES[name]
        weights = folder / f"{name}.safetensors"
        torch.manual_seed(0)
        network = build_model(task, model, sizes)
        if name == "denoising":
            trained, _ = load_model(find_weights("small_gaussian25"))
            network.load_state_dict(trained.state_dict(), strict=False)
        save_checkpoint(weights, network)
        made[key] = weights, load_model(weights)[0], export(weights, folder / key, precision)
        return made[key]

    return make


@torch.inference_mode()
def stages(network, image: torch.Tensor) -> torch.Tensor:
    """The stage images, first to last."""
    return torch.stack(network(image)[::-1])


@pytest.mark.parametrize("name", ("deblurring", "sensing"))
def test_onnx_makes_pytorchs_stages_at_other_sizes_than_the_traced(exported, name):
    _, network, files = exported(name)
    for batch, height, width in ((1, 5, 2), (3, 1, 4), (1, 2, 2)):
        size = (height * network.multiple_of, width * network.multiple_of)
        image = torch.rand(batch, network.channels, *size)
        difference = torch.stack(run(files, image)) - stages(network, image)
        assert difference.abs().max() < 1e-5


def test_onnx_on_flat_images_differs_as_float32_from_float64(exported):
    _, network, files = exported("deblurring")
    exact = copy.deepcopy(network).double()
    for colour in ((0, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5), (0.9, 0.2, 0.4)):
        image = torch.tensor(colour, dtype=torch.float32)[:, None, None].expand(1, 3, 64, 48)
        wanted = stages(network, image)
        rounding = (wanted - stages(exact, image.double())).abs().max().item()
        difference = (torch.stack(run(files, image)) - wanted).abs().max().item()
        assert difference < max(3 * rounding, 5e-6)


def test_float16_is_within_two_hundredths_of_a_decibel(exported):
    target = torch.from_numpy(data.astronaut()[:160, 100:308] / np.float32(255)).permute(2, 0, 1)
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    image = (target + 25 / 255 * noise)[None]
    weights, network, files = exported("denoising", precision="float16")
    wanted = -10 * (stages(network, image)[-1] - target).square().mean().log10()
    psnr = -10 * (run(files, image)[-1] - target).square().mean().log10()
    assert abs(wanted - psnr) < 0.02
    assert files[0].stat().st_size < 0.7 * weights.stat().st_size


def test_pt2_makes_pytorchs_stages(exported):
    _, network, files = exported("sensing", ".pt2")
    image = torch.rand(2, 1, 64, 96)
    assert (torch.stack(run(files, image)) - stages(network, image)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("name", "precision"), [("deblurring", "float32"), ("denoising", "float16")]
)
def test_graph_has_no_float64_and_metadata_that_says_what_it_is(exported, name, precision):
    import onnx

    weights, network, (file,) = exported(name, precision=precision)
    model = onnx.load(file)
    kinds = {value.type.tensor_type.elem_type for value in model.graph.value_info}
    kinds |= {tensor.data_type for tensor in model.graph.initializer}
    assert onnx.TensorProto.DOUBLE not in kinds
    says = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(says["sizes"]) == network.sizes
    assert says["weights_sha256"] == sha256(weights)
    for key, value in {
        "task": name.capitalize(),
        "model": type(network).__name__,
        "degradation": "",
        "precision": precision,
        "licence": "",
        "channels": "3",
        "multiple_of": "8",
        "min_long_side": "16",
        "padding": "reflect",
    }.items():
        assert says[key] == value
    says = describe(find_weights("small_gaussian25"), network)
    assert (says["degradation"], says["licence"]) == ("Gaussian noise, σ = 25 of 255", "MIT")


def test_normal_equations_are_solved_where_float32_cannot_square_the_condition():
    generator = torch.Generator().manual_seed(0)
    orthonormal = torch.linalg.qr(torch.randn(500, 16, generator=generator).double())[0]
    turned = torch.linalg.qr(torch.randn(16, 16, generator=generator).double())[0]
    V = orthonormal * torch.logspace(0, -4, 16).double() @ turned  # VᵀV: condition 1e8
    B = torch.randn(500, 8, generator=generator).double()
    exact = V @ torch.linalg.lstsq(V, B).solution
    V32, B32 = V.float()[None], B.float()[None]
    found = V32 @ solve_normal_equations(V32, V32.mT @ B32)
    assert (found[0] - exact).abs().max() < 5e-3  # Vᵀ B is rounded, too
    plain = V32 @ torch.linalg.solve(V32.mT @ V32 + 1e-7 * torch.eye(16), V32.mT @ B32)
    assert (plain[0] - exact).abs().max() > 0.05


def test_check_prints_a_small_difference(exported, tmp_path):
    weights, _, files = exported("sensing")
    Image.fromarray(data.camera()[:100, :130]).save(tmp_path / "camera.png")
    text = check(weights, files, tmp_path / "camera.png")
    assert "96×128" in text
    assert "(0.00" in text


def test_other_suffixes_and_precisions_are_refused(tmp_path):
    weights = find_weights("small_gaussian25")
    with pytest.raises(InputError, match=r"\.onnx or \.pt2"):
        export(weights, tmp_path / "a.tflite")
    with pytest.raises(InputError, match="float32, float16"):
        export(weights, tmp_path / "a.onnx", "int8")


@pytest.mark.parametrize("name", ("deblurring", "sensing"))
def test_example_restores_without_pytorch_what_the_demo_does(exported, tmp_path, name):
    _, network, files = exported(name)
    pixels = data.astronaut()[:250, :301]
    Image.fromarray(pixels).save(tmp_path / "in.png")
    code = (
        "import runpy, sys; sys.modules |= dict.fromkeys(['torch', 'cv2', 'dgunet']); "
        f"runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    )
    given = [tmp_path / "in.png", "-o", tmp_path / "out.png", "--tile", "200", "--threads", "1"]
    subprocess.run([sys.executable, "-c", code, *given, "--model", *files], check=True)
    wanted = Restorer(network, device="cpu", tile=200)(pixels)
    restored = np.asarray(Image.open(tmp_path / "out.png"))
    assert restored.shape == pixels.shape
    assert np.abs(restored.astype(int) - wanted).max() <= 1
