import pytest
import torch

from dgunet.base.errors import InputError
from dgunet.inference.device import pick_device


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
def test_the_best_device_is_picked_unless_one_is_named(monkeypatch, gpus, mps, name, device):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device(name) == torch.device(device)


@pytest.mark.parametrize("name", ["cuda", "cuda:2", "mps", "gpu", ""])
def test_a_device_that_is_not_available_is_refused(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if name == "cuda:2" else 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match="is not available; expected auto, "):
        pick_device(name)
