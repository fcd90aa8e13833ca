import pytest
import torch

from dgunet.base.errors import InputError
from dgunet.inference.device import has_code, pick_device, slow_precision


@pytest.fixture
def gpus(monkeypatch):
    """Make this machine have so many GPUs, all V100s, which this build of PyTorch has code for or
    not, and Apple's GPU or not."""

    def have(count, mps=False, built=("sm_70",)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return have


@pytest.mark.parametrize(
    "count, mps, name, device",
    [
        (0, False, "auto", "cpu"),
        (0, True, "auto", "mps"),
        (2, True, "auto", "cuda"),
        (2, False, "cpu", "cpu"),
        (2, False, "cuda:1", "cuda:1"),
        (2, False, "cuda", "cuda"),
    ],
)
def test_the_best_device_is_picked_unless_one_is_named(gpus, count, mps, name, device):
    gpus(count, mps)
    assert pick_device(name) == torch.device(device)


@pytest.mark.parametrize("name", ["cuda", "cuda:2", "mps", "gpu", ""])
def test_a_device_that_is_not_available_is_refused(gpus, name):
    gpus(2 if name == "cuda:2" else 0)
    with pytest.raises(InputError, match="is not available; expected auto, "):
        pick_device(name)


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        ("sm_70 sm_75", (7, 0), True),
        ("sm_75 sm_80", (7, 0), False),
        ("sm_75 sm_80", (8, 6), True),
        ("sm_75 sm_86", (8, 0), False),
        ("sm_75 sm_90", (10, 0), False),
        ("sm_75 compute_90", (12, 0), True),
        ("sm_90a", (9, 0), True),
        ("sm_120a", (12, 1), False),
        ("gfx90a gfx942", (9, 0), True),
    ],
)
def test_code_runs_on_its_generation_and_what_can_be_translated_later(built, capability, runs):
    assert has_code(built.split(), capability) is runs


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
def test_a_card_that_pytorch_has_no_code_for_is_named_with_the_remedy(gpus, name):
    gpus(1, built=["sm_75", "sm_80"])
    message = r"^Tesla V100 \(cuda.*\) has compute capability 7.0, but PyTorch .* sm_75 sm_80; "
    with pytest.raises(InputError, match=message + r"expected pip install \"torch<2.11\""):
        pick_device(name)
    assert pick_device("cpu").type == "cpu"


def test_a_card_without_units_for_bf16_is_warned_of(gpus):
    gpus(1)
    gpu = torch.device("cuda")
    assert slow_precision(gpu, "bf16") == "Tesla V100 has no units for bf16; fp16 is faster there"
    assert slow_precision(gpu, "fp16") == slow_precision(torch.device("cpu"), "bf16") == ""
