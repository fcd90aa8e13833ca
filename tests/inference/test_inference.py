import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dgunet.base.errors import InputError
from dgunet.inference.restorer import pick_device, restore
from dgunet.model.registry import build_model


def small_network():
    torch.manual_seed(0)
    sizes = {"width": 8, "width_step": 4, "stages": 2}
    return build_model("Deblurring", "DGUNet", sizes).eval()


class Recorder(nn.Module):
    """Returns its input and notes what it was given."""

    multiple, least = 8, 16

    def forward(self, image):
        self.seen = image
        return [image, torch.zeros_like(image)]


class Shift(nn.Module):
    """Looks at the neighbour to the left and the one above: tells all eight moves apart."""

    multiple, least = 8, 16

    def forward(self, image):
        return [image + 0.5 * image.roll(1, -1) - 0.25 * image.roll(1, -2)]


@pytest.mark.parametrize("height, width", [(16, 24), (8, 16), (16, 8)])
def test_sizes_the_network_takes_are_given_to_it_as_they_are(height, width):
    network, image = small_network(), torch.rand(2, 3, height, width)
    with torch.no_grad():
        assert torch.equal(restore(network, image), network(image)[0])


@pytest.mark.parametrize(
    "height, width, padded",
    [(1, 1, (16, 16)), (8, 8, (16, 16)), (3, 40, (8, 40)), (17, 9, (24, 16)), (16, 20, (16, 24))],
)
def test_other_sizes_are_padded_and_cropped(height, width, padded):
    network, image = Recorder(), torch.rand(1, 3, height, width)
    assert torch.equal(restore(network, image), image)
    assert tuple(network.seen.shape[-2:]) == padded
    assert restore(small_network(), image).shape == image.shape


def test_padding_reflects_at_the_bottom_and_right():
    network, image = Recorder(), torch.rand(1, 3, 13, 22)
    restore(network, image)
    assert torch.equal(network.seen, F.pad(image, (0, 2, 0, 3), mode="reflect"))


def test_the_result_is_not_clamped():
    image = torch.full((1, 3, 16, 16), 1.5)
    assert torch.equal(restore(Recorder(), image), image)


def test_self_ensemble_is_the_mean_over_the_symmetries_of_the_square():
    # Over the eight moves each neighbour takes each of the four places twice.
    image = torch.rand(1, 3, 16, 24)
    neighbours = sum(image.roll(shift, axis) for shift in (1, -1) for axis in (-1, -2))
    expected = image + (0.5 - 0.25) / 4 * neighbours
    assert torch.allclose(restore(Shift(), image, self_ensemble=True), expected, atol=1e-6)


def test_self_ensemble_moves_with_the_image():
    network, image = small_network(), torch.rand(1, 3, 13, 22)
    restored = restore(network, image, self_ensemble=True)
    assert (restored - restore(network, image)).abs().max() > 1e-5
    for moved_back in (
        restore(network, image.flip(-1), self_ensemble=True).flip(-1),
        torch.rot90(
            restore(network, torch.rot90(image, 1, (-2, -1)), self_ensemble=True), -1, (-2, -1)
        ),
    ):
        assert torch.allclose(moved_back, restored, atol=1e-5)


def test_nothing_is_recorded_for_a_backward_pass():
    assert not restore(small_network(), torch.rand(1, 3, 16, 16)).requires_grad


@pytest.mark.parametrize(
    "gpus, mps, name, device",
    [
        (0, False, "auto", "cpu"),
        (0, True, "auto", "mps"),
        (2, True, "auto", "cuda"),
        (2, False, "cpu", "cpu"),
        (2, False, "cuda:1", "cuda:1"),
        (2, False, "cuda", "cuda"),
    ],
)
def test_pick_device(monkeypatch, gpus, mps, name, device):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device(name) == torch.device(device)


@pytest.mark.parametrize("name", ["cuda", "cuda:2", "mps", "gpu", ""])
def test_a_device_that_is_not_there(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if name == "cuda:2" else 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match="is not available; expected auto, "):
        pick_device(name)
