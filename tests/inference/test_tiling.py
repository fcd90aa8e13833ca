import logging
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import small
from torch import nn

from dgunet.base.errors import InputError
from dgunet.inference import memory as device_memory
from dgunet.inference.local_statistics import box_mean, use_local_statistics
from dgunet.inference.memory import is_out_of_memory, largest_indexable_tile, largest_tile
from dgunet.inference.optimize import optimize_for_inference
from dgunet.inference.restorer import Restorer
from dgunet.inference.tiling import spans, strips
from dgunet.model.registry import build_model


class Convolutions(nn.Module):
    """Looks exactly `radius` pixels far, and by its stride of 2 tells even from odd places: a
    stand-in whose surroundings can fit an overlap, as DGUNet's never do."""

    channels, multiple_of, min_long_side, padding = 3, 8, 16, "reflect"
    sizes, optimized = {"width": 8, "width_step": 4, "stages": 1}, False

    def __init__(self, radius):
        super().__init__()
        torch.manual_seed(radius)
        self.full = nn.Conv2d(3, 3, 2 * radius - 1, padding=radius - 1, groups=3)
        self.down = nn.Conv2d(3, 6, 2, stride=2)
        self.up = nn.ConvTranspose2d(6, 3, 2, stride=2)

    def forward(self, image):
        return [0.5 + 0.3 * torch.tanh(self.up(F.relu(self.down(self.full(image)))))]


def photo(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 1, shape).astype(np.float32)


@pytest.mark.parametrize(
    "size, tile, overlap, multiple_of",
    [(500, 64, 0, 8), (1000, 192, 64, 32), *[(size, 48, 16, 8) for size in range(49, 400, 12)]],
)
def test_tiles_of_one_size_cover_the_axis(size, tile, overlap, multiple_of):
    cut = spans(size, tile, overlap, multiple_of)
    assert cut[0].start == 0 and cut[-1].stop == size
    assert len({span.padded for span in cut}) == 1 and cut[0].padded <= tile
    for span in cut:
        assert span.start % multiple_of == 0 and span.padded % multiple_of == 0
        assert span.stop == min(span.start + span.padded, size)
    for before, after in pairwise(cut):
        assert before.stop - after.start >= overlap
        if overlap:  # the outer quarter of what they share does not count
            assert not before.weights[-overlap // 4 :].any()
            assert not after.weights[: overlap // 4].any()
    total = np.zeros(size)
    for span in cut:
        total[span.start : span.stop] += span.weights.numpy()
    np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize("height, width", [(150, 203), (64, 500), (7, 300)])
def test_tiled_is_whole_where_the_overlap_suffices(height, width):
    network, image = Convolutions(8), photo(height, width, 3)
    whole = Restorer(network, device="cpu", optimize=False, tile=0)(image)
    tiled = Restorer(network, device="cpu", optimize=False, tile=96, tile_overlap=32)(image)
    np.testing.assert_allclose(tiled, whole, atol=1e-6)
    # And not where it does not: the test above tells tiles apart.
    short = Restorer(network, device="cpu", optimize=False, tile=96, tile_overlap=16)(image)
    assert np.abs(short - whole).max() > 1e-3


def test_all_stages_batches_and_types_go_through_tiles():
    network = small("Denoising")
    batch = (photo(2, 100, 120, 3) * 65535).astype(np.uint16)
    tiled = Restorer(network, device="cpu", tile=96, tile_overlap=32)
    whole = Restorer(network, device="cpu", tile=0)
    np.testing.assert_allclose(tiled(batch)[1], tiled(batch[1]), atol=2)
    first, last = tiled.stages(batch)
    assert np.array_equal(last, tiled(batch)) and not np.array_equal(first, last)
    # The network's statistics are the tile's: near the whole image's result, not equal to it.
    difference = np.abs(tiled(batch).astype(int) - whole(batch)).max()
    assert 0 < difference < 0.05 * 65535


def test_an_image_that_fits_is_restored_whole():
    network, image = small("Denoising"), torch.rand(1, 3, 64, 72)
    with torch.no_grad():
        expected = optimize_for_inference(network)(image)[0].clamp(0, 1)
    for tile in ("auto", 0, 192):
        assert torch.equal(Restorer(network, device="cpu", tile=tile)(image), expected)


def test_no_more_than_a_row_of_tiles_is_held():
    rows, columns = spans(300, 96, 32, 8), spans(400, 96, 32, 8)
    image, steps, place = torch.rand(1, 1, 300, 400), [], 0

    def read(row, column):
        return image[..., row, column]

    done = strips(lambda parts: parts, read, rows, columns, 3, lambda *now: steps.append(now))
    for strip, values in done:
        assert strip.start == place and strip.stop - place <= 96
        torch.testing.assert_close(values, image[..., strip, :])
        place = strip.stop
    assert place == 300 and steps == [(number, 30) for number in range(1, 31)]


class Memory:
    """A network's memory: it raises `error` for more than so many pixels."""

    def __init__(self, network, pixels, error):
        self.pixels, self.error, self.sizes = pixels, error, []
        network.register_forward_pre_hook(self.check)

    def check(self, _, given):
        height, width = given[0].shape[2:]
        self.sizes.append((height, width))
        if height * width > self.pixels:
            raise self.error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate`"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
    ],
)
@pytest.mark.parametrize("tile", ["auto", 0, 256])
def test_out_of_memory_halves_the_tile(error, tile, caplog):
    network, image = Convolutions(4), photo(250, 256, 3)
    expected = Restorer(network, device="cpu", optimize=False, tile=0)(image)
    memory = Memory(network, 70 * 70, error)
    restorer = Restorer(network, device="cpu", optimize=False, tile=tile, tile_overlap=16)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(restorer(image), expected, atol=1e-6)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "tiles of 256 do not fit the memory of cpu, going on with 128",
        "tiles of 128 do not fit the memory of cpu, going on with 64",
    ]
    memory.sizes.clear()
    restorer(image)  # the next image begins with what was found
    assert max(max(size) for size in memory.sizes) <= 64


def test_too_little_memory_for_the_smallest_tile():
    network = Convolutions(4)
    Memory(network, 0, torch.OutOfMemoryError("out of memory"))
    for image in (photo(250, 256, 3), photo(5, 5, 3)):
        with pytest.raises(InputError, match="pixels do not fit the memory of cpu"):
            Restorer(network, device="cpu", optimize=False, tile_overlap=16)(image)


def test_other_errors_are_no_lack_of_memory():
    network = Convolutions(4)
    Memory(network, 0, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        Restorer(network, device="cpu", optimize=False)(photo(9, 9, 3))
    assert not is_out_of_memory(ValueError("out of memory"))


def have_free(monkeypatch, free: int) -> None:
    """Make the CPU and the GPU have so many bytes free."""
    monkeypatch.setattr(device_memory, "free_memory", lambda: free)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2**60))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)


def test_the_automatic_tile_fits_the_free_memory(monkeypatch):
    network, wide = small("Denoising"), small("Denoising", width=32)
    sides = {}
    for free in (2**28, 2**30, 2**40):
        have_free(monkeypatch, free)
        for device in ("cpu", "cuda"):
            side = largest_tile(network, torch.device(device))
            assert side % 8 == 0 and side >= largest_tile(wide, torch.device(device))
            assert side > largest_tile(network, torch.device(device), images=4)
            sides[device, free] = side
    assert sides["cpu", 2**28] < sides["cpu", 2**30] < sides["cpu", 2**40]
    assert sides["cpu", 2**40] ** 2 * 12 * 4 * 10 < 3 * 2**30  # what is measured, at least
    assert sides["cuda", 2**40] > sides["cpu", 2**40]
    have_free(monkeypatch, 0)
    assert largest_tile(network, torch.device("cpu")) == 8


def test_the_features_of_a_tile_can_be_indexed_with_32_bits(monkeypatch):
    with torch.device("meta"):
        network = build_model("Denoising", "DGUNet")  # at most 160 channels
    for images in (1, 4):
        side = largest_indexable_tile(network, images)
        assert images * 160 * side**2 < 2**31 < images * 160 * (side + 8) ** 2
    have_free(monkeypatch, 2**50)
    assert largest_tile(network, torch.device("cuda")) == largest_indexable_tile(network)
    restorer = Restorer(small("Denoising"), device="cpu", tile=0)
    assert restorer._tile_for(10, 20_000, 1) == 20_000 > restorer._tile_for(20_000, 20_000, 1)


@pytest.mark.parametrize("size, window", [((9, 12), 5), ((9, 12), 4), ((20, 7), 11), ((3, 3), 9)])
def test_box_mean_is_the_mean_over_windows(size, window):
    features = torch.rand(2, 3, *size)
    means = box_mean(features, window).expand_as(features)
    for y, x in np.ndindex(size):
        top, left = (
            min(max(place - window // 2, 0), max(0, length - window))
            for place, length in zip((y, x), size, strict=True)
        )
        expected = features[..., top : top + window, left : left + window].mean((2, 3))
        assert torch.allclose(means[..., y, x], expected, atol=1e-6)


@pytest.mark.parametrize("task", ["Deblurring", "Compressive_Sensing"])
def test_a_window_as_large_as_the_image_changes_nothing(task):
    plain, wide, narrow, fast = small(task), small(task), small(task), small(task)
    fast = optimize_for_inference(fast)
    image = torch.rand(1, plain.channels, 64, 96)
    for network, window in ((wide, 96), (narrow, 32), (fast, 32)):
        use_local_statistics(network, window)
    with torch.no_grad():
        expected, local = plain(image), narrow(image)[0]
        for found, whole in zip(wide(image), expected, strict=True):
            assert torch.allclose(found, whole, atol=1e-5)
        assert (local - expected[0]).abs().max() > 1e-4
        assert torch.allclose(fast(image)[0], local, atol=1e-5)


def test_local_normalisation_is_that_of_a_window():
    network = small("Denoising")
    norm = network.ipmm[0].encoder[0].norm
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    use_local_statistics(network, 8)
    network(torch.rand(1, 3, 32, 32))  # the height from which the scale is told
    features = 5 + torch.rand(1, norm.num_features, 32, 32)
    local = norm(features)
    window = features[..., 10:18, 4:12]
    expected = F.instance_norm(window, weight=norm.weight, bias=norm.bias, eps=norm.eps)
    assert torch.allclose(local[..., 14, 8], expected[..., 4, 4], atol=1e-4)


def test_local_statistics_make_the_network_local():
    """Compressive sensing has no projection: with local statistics nothing looks at all."""
    network, image = small("Compressive_Sensing", cs_ratio=10), torch.rand(1, 1, 32, 1024)
    changed = image.clone()
    changed[..., -32:] = 0
    results = {}
    for window in (0, 64):
        restorer = Restorer(network, device="cpu", tile=0, local_statistics=window)
        results[window] = (restorer(image) - restorer(changed))[..., :512].abs().max()
    assert results[0] > 1e-4 and results[64] < 1e-6
