import numpy as np
import pytest
import torch

from dgunet.base.errors import InputError
from dgunet.images.files import to_tensor
from dgunet.inference.restorer import Restorer, restore
from dgunet.model.checkpoint import save_checkpoint
from dgunet.model.registry import build_model

SMALL = {"width": 8, "width_step": 4, "stages": 2}


@pytest.fixture(scope="module")
def restorers(tmp_path_factory):
    """By task: a restorer of a small random network, from its checkpoint, and as its attribute
    `plain` the network."""
    made, folder = {}, tmp_path_factory.mktemp("weights")
    for task in ("Deraining", "Compressive_Sensing"):
        torch.manual_seed(0)
        network = build_model(task, "DGUNet", SMALL).eval()
        save_checkpoint(folder / f"{task}.pth", network)
        made[task] = Restorer.from_checkpoint(folder / f"{task}.pth", device="cpu")
        made[task].plain = network
    return made


def pixels(*shape, dtype=np.uint8):
    rng = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return rng.random(shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def by_network(network, image):
    """What the network makes of an H×W or H×W×C image, clamped to [0,1]: float64, as large."""
    batch = to_tensor(image)[None].expand(-1, network.channels, -1, -1).contiguous()
    restored = restore(network, batch)[0].permute(1, 2, 0).double().numpy()
    return (restored.mean(2) if image.ndim == 2 else restored).clip(0, 1)


@pytest.mark.parametrize("shape", [(21, 30), (21, 30, 3), (21, 30, 4), (1, 1), (8, 8, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.float16])
def test_arrays_of_every_type(restorers, shape, dtype):
    restorer, image = restorers["Deraining"], pixels(*shape, dtype=dtype)
    restored = restorer(image)
    assert restored.dtype == image.dtype and restored.shape == image.shape
    expected = by_network(restorer.plain, image if image.ndim == 2 else image[..., :3])
    scale = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    colours = restored if image.ndim == 2 else restored[..., :3]
    tolerance = {np.uint8: 0.51, np.uint16: 0.6, np.float16: 1e-3}.get(dtype, 1e-6)
    np.testing.assert_allclose(colours.astype(float), expected * scale, atol=tolerance)
    if shape[2:] == (4,):
        assert np.array_equal(restored[..., 3], image[..., 3])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32, torch.bfloat16])
def test_tensors(restorers, dtype):
    restorer, image = restorers["Deraining"], torch.from_numpy(pixels(2, 3, 20, 30))
    image = image.to(dtype) if dtype in (torch.uint8, torch.uint16) else (image / 255).to(dtype)
    restored = restorer(image)
    assert restored.dtype == dtype and restored.shape == image.shape
    single = restorer(image[1])
    assert single.shape == image.shape[1:]
    array = image[1].float() if dtype == torch.bfloat16 else image[1]
    expected = restorer(np.ascontiguousarray(array.permute(1, 2, 0).numpy()))
    assert torch.equal(single, torch.from_numpy(expected).permute(2, 0, 1).to(dtype))
    difference = restored[1].double() - single.double()
    assert difference.abs().max() <= (1 if dtype in (torch.uint8, torch.uint16) else 1e-2)
    assert restorer(image[0, :1]).shape == (1, 20, 30)


def test_the_input_is_not_changed_and_views_are_taken(restorers):
    whole = pixels(40, 60, 3)
    view, before = whole[::-2, 3:50, ::-1], whole.copy()
    restored = restorers["Deraining"](view)
    assert np.array_equal(whole, before) and not np.shares_memory(restored, whole)
    assert np.array_equal(restored, restorers["Deraining"](np.ascontiguousarray(view)))


def test_compressive_sensing_takes_each_channel_on_its_own(restorers):
    restorer, image = restorers["Compressive_Sensing"], pixels(40, 70, 3)
    restored = restorer(image)
    for channel in range(3):
        np.testing.assert_allclose(restored[..., channel], restorer(image[..., channel]), atol=1)
    expected = by_network(restorer.plain, image[..., 1])
    np.testing.assert_allclose(restored[..., 1], expected * 255, atol=0.51)


def test_tiles_keep_the_blocks_of_compressive_sensing():
    """The blocks of a tile are the image's, so what is measured is the same."""
    network = build_model("Compressive_Sensing", "DGUNet", SMALL)
    seen, measure = [], network.measure
    network.measure = lambda image: seen.append(image) or measure(image)
    image = pixels(70, 450)
    restorer = Restorer(network, device="cpu", tile=200, tile_overlap=50)
    assert (restorer.tile, restorer.tile_overlap) == (192, 64)
    restorer(image)
    blocks = {block.numpy().tobytes() for part in seen for block in _blocks(part)}
    padded = np.pad(image, ((0, 26), (0, 30)), mode="reflect")
    assert len(blocks) == 3 * 15
    assert blocks == {block.numpy().tobytes() for block in _blocks(to_tensor(padded)[None])}


def _blocks(image):
    _, _, height, width = image.shape
    for top in range(0, height, 32):
        for left in range(0, width, 32):
            yield image[0, 0, top : top + 32, left : left + 32].contiguous()


def test_stages_end_with_the_result(restorers):
    image = pixels(30, 40, 3)
    stages = restorers["Deraining"].stages(image)
    network = restorers["Deraining"].plain
    with torch.no_grad():
        padded = np.pad(image, ((0, 2), (0, 0), (0, 0)), mode="reflect")
        expected = network(to_tensor(padded)[None])[::-1]
    assert len(stages) == len(expected) == 2
    for stage, tensor in zip(stages, expected, strict=True):
        levels = tensor[0, :, :30].clamp(0, 1).permute(1, 2, 0).numpy() * 255
        np.testing.assert_allclose(stage, levels, atol=0.51)
    assert np.array_equal(stages[-1], restorers["Deraining"](image))


def test_settings():
    network = build_model("Denoising", "DGUNet", SMALL)
    image = pixels(24, 32, 3, dtype=np.float32)
    ensemble = Restorer(network, device="cpu", self_ensemble=True)(image)
    expected = restore(network, to_tensor(image)[None], self_ensemble=True)[0].clamp(0, 1)
    np.testing.assert_allclose(ensemble, expected.permute(1, 2, 0), atol=1e-6)
    plain = Restorer(network, device="cpu")(image)
    for precision, limit in (("bf16", 0.1), ("fp16", 0.02)):
        reduced = Restorer(network, device="cpu", precision=precision)(image)
        assert 0 < np.abs(reduced - plain).max() < limit


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tile": 100}, "tile is 100; expected auto, 0 or at least 192"),
        ({"tile": "large"}, "tile is large"),
        ({"tile": -8}, "tile is -8"),
        ({"tile_overlap": -1}, "tile overlap is -1"),
        ({"local_statistics": -1}, "window of local statistics -1; expected 0 or more"),
        ({"precision": "int8"}, "precision is 'int8'; expected one of float32, bf16, fp16"),
        ({"device": "abacus"}, "device 'abacus' is not available"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(InputError, match=message):
        Restorer(build_model("Denoising", "DGUNet", SMALL), **{"device": "cpu", **options})


@pytest.mark.parametrize(
    "image, message",
    [
        ([[1, 2]], "list; expected an array"),
        (np.zeros(5), r"shape \(5,\); expected an array"),
        (np.zeros((4, 4), np.int64), "an image of int64"),
        (np.zeros((4, 4), bool), "an image of bool"),
        (np.zeros((4, 4, 2)), r"shape \(4, 4, 2\); expected pixels of 1, 3 or 4"),
        (np.zeros((0, 4, 3)), "expected pixels"),
        (np.array([[np.nan, 0], [np.inf, 0]]), "2 of the image's values are not finite"),
        (torch.zeros(4, 4), r"a tensor of shape \(4, 4\); expected C×H×W"),
        (torch.zeros(3, 4, 4, dtype=torch.int32), "an image of int32"),
    ],
)
def test_what_is_no_image(restorers, image, message):
    with pytest.raises(InputError, match=message):
        restorers["Deraining"](image)


def test_a_result_that_is_not_finite():
    network = build_model("Denoising", "DGUNet", SMALL)
    torch.nn.init.constant_(network.last.image.weight, torch.inf)
    with pytest.raises(InputError, match=r"not finite$"):
        Restorer(network, device="cpu")(pixels(16, 16, 3))
    with pytest.raises(InputError, match="not finite in bf16; try float32"):
        Restorer(network, device="cpu", precision="bf16")(pixels(16, 16, 3))


def test_the_file_says_what_it_is_of(tmp_path, restorers):
    save_checkpoint(tmp_path / "a.pth", restorers["Deraining"].plain)
    assert Restorer.from_checkpoint(tmp_path / "a.pth").network.config["task"] == "Deraining"
    with pytest.raises(InputError, match="this is a Deraining DGUNet checkpoint"):
        Restorer.from_checkpoint(tmp_path / "a.pth", task="Deblurring")
