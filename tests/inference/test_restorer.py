import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import small
from torch import nn

from dgunet.base.errors import InputError
from dgunet.images.files import to_tensor
from dgunet.inference.restorer import Restorer


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return Restorer(small("Deraining"), device="cpu")


def pixels(*shape, dtype=np.uint8):
    rng = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return rng.random(shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def by_network(network, image):
    """What the network makes of an H×W or H×W×C image, clamped to [0,1]: float64, as large."""
    batch = to_tensor(image)[None].expand(-1, network.channels, -1, -1).contiguous()
    restorer = Restorer(network, device="cpu", optimize=False)
    restored = restorer.restore(batch)[0].permute(1, 2, 0).double().numpy()
    return (restored.mean(2) if image.ndim == 2 else restored).clip(0, 1)


@pytest.mark.parametrize("shape", [(21, 30), (21, 30, 3), (21, 30, 4), (1, 1), (8, 8, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.float16])
def test_arrays_of_every_type(restorer, shape, dtype):
    image = pixels(*shape, dtype=dtype)
    restored = restorer(image)
    assert restored.dtype == image.dtype and restored.shape == image.shape
    expected = by_network(small("Deraining"), image if image.ndim == 2 else image[..., :3])
    scale = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    colours = restored if image.ndim == 2 else restored[..., :3]
    tolerance = {np.uint8: 0.51, np.uint16: 0.6, np.float16: 1e-3}.get(dtype, 1e-6)
    np.testing.assert_allclose(colours.astype(float), expected * scale, atol=tolerance)
    if shape[2:] == (4,):
        assert np.array_equal(restored[..., 3], image[..., 3])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32, torch.bfloat16])
def test_tensors_are_restored_as_arrays_are(restorer, dtype):
    image = torch.from_numpy(pixels(2, 3, 20, 30))
    image = image.to(dtype) if dtype in (torch.uint8, torch.uint16) else (image / 255).to(dtype)
    restored = restorer(image)
    assert restored.dtype == dtype and restorer(image[1]).shape == image.shape[1:]
    array = image.float() if dtype == torch.bfloat16 else image
    expected = torch.from_numpy(restorer(array.permute(0, 2, 3, 1).numpy()))
    assert torch.equal(restored, expected.permute(0, 3, 1, 2).to(dtype))


def test_the_input_is_not_changed_and_views_are_taken(restorer):
    whole = pixels(40, 60, 3)
    view, before = whole[::-2, 3:50, ::-1], whole.copy()
    restored = restorer(view)
    assert np.array_equal(whole, before) and not np.shares_memory(restored, whole)
    assert np.array_equal(restored, restorer(np.ascontiguousarray(view)))


def test_tiles_keep_the_blocks_of_compressive_sensing():
    """The blocks of a tile are the image's, so what is measured is the same."""
    network = small("Compressive_Sensing")
    seen, measure = [], network.measure
    network.measure = lambda image: seen.append(image) or measure(image)
    image = pixels(70, 450)
    restorer = Restorer(network, device="cpu", tile=200, tile_overlap=50)
    assert (restorer.tile, restorer.tile_overlap) == (192, 64)
    restorer(image)
    padded = F.pad(to_tensor(image)[None], (0, 30, 0, 26))
    expected, found = (
        torch.cat([F.unfold(part, 32, stride=32).mT.flatten(0, 1) for part in parts])
        for parts in ([padded], seen)
    )
    assert torch.equal(found.unique(dim=0), expected.unique(dim=0)) and len(expected) == 3 * 15


def test_stages_end_with_the_result(restorer):
    image = pixels(30, 40, 3)
    stages = restorer.stages(image)
    with torch.no_grad():
        padded = np.pad(image, ((0, 2), (0, 0), (0, 0)), mode="reflect")
        expected = small("Deraining")(to_tensor(padded)[None])[::-1]
    assert len(stages) == len(expected) == 2
    for stage, tensor in zip(stages, expected, strict=True):
        levels = tensor[0, :, :30].clamp(0, 1).permute(1, 2, 0).numpy() * 255
        np.testing.assert_allclose(stage, levels, atol=0.51)
    assert np.array_equal(stages[-1], restorer(image))


# Tensors as they are: `restore` of a network used itself


class StandIn(nn.Module):
    """In a network's place: makes of an image what `make` does, and notes what it was given."""

    channels, multiple_of, min_long_side, sizes = 3, 8, 16, {"width": 8, "width_step": 4}

    def __init__(self, make=lambda image: image, padding="reflect"):
        super().__init__()
        self.make, self.padding, self.seen = make, padding, []

    def forward(self, image):
        self.seen.append(image)
        return [self.make(image), torch.zeros_like(image)]


def live(network, **options):
    return Restorer(network, device="cpu", optimize=False, **options)


@pytest.mark.parametrize(
    "height, width, padded",
    [
        (16, 24, (16, 24)),
        (16, 8, (16, 8)),
        (1, 1, (16, 16)),
        (8, 8, (16, 16)),
        (3, 40, (8, 40)),
        (17, 9, (24, 16)),
    ],
)
def test_other_sizes_are_padded_and_cropped(height, width, padded):
    """As the network says, at the bottom and right."""
    image = torch.rand(1, 3, height, width)
    added = [(0, 0), (0, 0), (0, padded[0] - height), (0, padded[1] - width)]
    for padding, mode in (("reflect", "reflect"), ("zeros", "constant")):
        network = StandIn(padding=padding)
        assert torch.equal(live(network).restore(image), image)
        np.testing.assert_array_equal(network.seen[0], np.pad(image, added, mode))


def test_the_result_is_not_clamped_or_checked():
    for image in (torch.full((1, 3, 16, 16), 1.5), torch.full((1, 3, 16, 16), torch.inf)):
        assert torch.equal(live(StandIn()).restore(image), image)


def test_tiles_without_overlap_are_the_published_grid():
    """Each restored alone, filled up with zeros; several small ones go through together."""
    network = StandIn(lambda image: image.mean((2, 3), keepdim=True).expand_as(image))
    network.channels, network.multiple_of, network.padding = 1, 32, "zeros"
    image = torch.rand(2, 1, 150, 300)
    restored = live(network, tile=128, tile_overlap=0).restore(image)
    assert [tuple(seen.shape) for seen in network.seen] == [(4, 1, 128, 128), (2, 1, 128, 128)] * 2
    padded = F.pad(image, (0, 84, 0, 106))
    means = F.avg_pool2d(padded, 128).repeat_interleave(128, 2).repeat_interleave(128, 3)
    torch.testing.assert_close(restored, means[..., :150, :300])
    live(network, tile=128, tile_overlap=0).restore(image[..., :50, :60])
    assert tuple(network.seen[-1].shape) == (2, 1, 128, 128)


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_float32_is_not_tf32(precision):
    seen = []

    def note(image):
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return image

    note(None)
    live(StandIn(note), precision=precision).restore(torch.rand(1, 3, 16, 16))
    note(None)
    assert seen[1] == (precision == "tf32", False)
    assert seen[0] == seen[2]


def test_compressive_sensing_takes_each_channel_on_its_own():
    network, image = small("Compressive_Sensing"), pixels(40, 70, 3)
    restorer = Restorer(network, device="cpu")
    restored = restorer(image)
    for channel in range(3):
        np.testing.assert_allclose(restored[..., channel], restorer(image[..., channel]), atol=1)
    expected = by_network(network, image[..., 1])
    np.testing.assert_allclose(restored[..., 1], expected * 255, atol=0.51)


def shifted(image):
    """Looks at the neighbours to the left and above: tells all eight symmetries apart."""
    return image + 0.5 * image.roll(1, -1) - 0.25 * image.roll(1, -2)


def test_self_ensemble_is_the_mean_over_the_symmetries_of_the_square():
    # Over the eight each neighbour takes each of the four places twice.
    image = torch.rand(1, 3, 16, 24)
    neighbours = sum(image.roll(shift, axis) for shift in (1, -1) for axis in (-1, -2))
    expected = image + (0.5 - 0.25) / 4 * neighbours
    restored = live(StandIn(shifted), self_ensemble=True).restore(image)
    assert torch.allclose(restored, expected, atol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tile": 100}, "tile is 100; expected auto, 0 or at least 192"),
        ({"tile": "large"}, "tile is large"),
        ({"tile": -8}, "tile is -8"),
        ({"tile_overlap": -1}, "tile overlap is -1"),
        ({"local_statistics": -1}, "window of local statistics -1; expected 0 or more"),
        ({"precision": "int8"}, "precision is 'int8'; expected one of float32, tf32, bf16, fp16"),
        ({"compile": "fast"}, "compile is 'fast'; expected one of default"),
        ({"device": "abacus"}, "device 'abacus' is not available"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(InputError, match=message):
        Restorer(small("Denoising"), **{"device": "cpu", **options})


@pytest.mark.parametrize(
    "image, message",
    [
        ([[1, 2]], "list: expected an array"),
        (np.zeros(5), r"\(5,\): expected an array"),
        (np.zeros((4, 4), np.int64), r"int64 of shape \(4, 4, 1\); expected pixels"),
        (np.zeros((4, 4), bool), "bool of shape"),
        (np.zeros((4, 4, 2)), r"shape \(4, 4, 2\); expected pixels of 1, 3 or 4"),
        (np.zeros((0, 4, 3)), "expected pixels"),
        (np.array([[np.nan, 0], [np.inf, 0]]), "2 of the image's values are not finite"),
        (torch.zeros(4, 4), r"a tensor of shape \(4, 4\); expected C×H×W"),
        (torch.zeros(3, 4, 4, dtype=torch.int32), "int32 of shape"),
    ],
)
def test_what_is_no_image(restorer, image, message):
    with pytest.raises(InputError, match=message):
        restorer(image)


def test_a_result_that_is_not_finite():
    network = small("Denoising")
    torch.nn.init.constant_(network.last.image.weight, torch.inf)
    with pytest.raises(InputError, match=r"not finite$"):
        Restorer(network, device="cpu")(pixels(16, 16, 3))
    with pytest.raises(InputError, match="not finite in bf16; try float32"):
        Restorer(network, device="cpu", precision="bf16")(pixels(16, 16, 3))
