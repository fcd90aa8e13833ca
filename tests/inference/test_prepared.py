"""The network made ready for inference against the plain one."""

import copy
import shutil

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dgunet.base.errors import InputError
from dgunet.inference.local_statistics import use_local_statistics
from dgunet.inference.restorer import Restorer, prepare
from dgunet.model.checkpoint import save_checkpoint
from dgunet.model.registry import MODELS, TASKS, build_model

SMALL = {"width": 8, "width_step": 4, "stages": 3}


def network_of(task: str, model: str = "DGUNet", **sizes):
    torch.manual_seed(0)
    return build_model(task, model, {**SMALL, **sizes}).eval()


def images(network, *size):
    shape = (size[0], network.channels, *size[1:])
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(1, 32, 64), (3, 64, 32)])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("task", TASKS)
@torch.inference_mode()
def test_the_pixels_are_the_plain_networks(task, model, size):
    network = network_of(task, model)
    image = images(network, *size)
    for given in (image, image.to(memory_format=torch.channels_last)):
        for plain, fast in zip(network(image), prepare(network)(given), strict=True):
            np.testing.assert_allclose(fast, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("task", TASKS)
@torch.inference_mode()
def test_constant_images_are_finite(task, value, precision):
    network = network_of(task)
    image = torch.full_like(images(network, 1, 32, 32), value)
    assert torch.stack(prepare(network, precision=precision)(image)).isfinite().all()


@torch.inference_mode()
def test_a_large_mean_leaves_the_normalisation_its_digits():
    network = network_of("Denoising").double()
    image = images(network, 1, 32, 32).double()
    with torch.no_grad():
        for ipmm in network.ipmm:
            for block in ipmm.encoder:
                block.conv1.bias += 1000
    exact = network(image)[0]
    found = prepare(network.float())(image.float())[0]
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-3)


@pytest.mark.parametrize("task", ["Deraining", "Compressive_Sensing"])
@torch.inference_mode()
def test_local_statistics_are_the_same(task):
    network = network_of(task)
    image, fast = images(network, 1, 64, 96), prepare(network)
    whole = fast(image)[0]
    use_local_statistics(network, 32)
    use_local_statistics(fast, 32)
    np.testing.assert_allclose(fast(image)[0], network(image)[0], rtol=0, atol=1e-5)
    assert (fast(image)[0] - whole).abs().max() > 1e-4


def test_the_network_itself_is_left_as_it_was(tmp_path):
    network = network_of("Deblurring").train()
    before = copy.deepcopy(network.state_dict())
    fast = prepare(network, precision="bf16")
    with torch.inference_mode():
        fast(images(network, 1, 16, 16))
    assert network.training and all(p.requires_grad for p in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) and value.is_contiguous()
    assert fast.config == network.config
    with pytest.raises(ValueError, match="prepared already"):
        prepare(fast)
    with pytest.raises(ValueError, match="is prepared for inference"):
        save_checkpoint(tmp_path / "a.pth", fast)
    assert not list(tmp_path.iterdir())


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the storages that operators have returned and that still live."""

    def __init__(self):
        super().__init__()
        self.live, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = torch.multiprocessing.reductions.StorageWeakRef(tensor.untyped_storage())
                self.live[storage.cdata] = (storage, tensor.untyped_storage().nbytes())
        self.live = {k: v for k, v in self.live.items() if not v[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return made


@pytest.mark.parametrize("task", ["Deraining", "Compressive_Sensing"])
@torch.inference_mode()
def test_features_are_let_go(task):
    network = network_of(task, width=40, width_step=20)
    image = images(network, 1, 64, 64)
    peaks = []
    for candidate in (network, prepare(network), prepare(network, precision="bf16")):
        with PeakMemory() as memory:
            candidate(image)
        peaks.append(memory.peak)
    assert peaks[1] < 0.6 * peaks[0] and peaks[2] < 0.5 * peaks[0]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    network = network_of("Deraining", stages=2)
    image = images(network, 1, 16, 24)
    with torch.inference_mode():
        compiled = prepare(network, compile=True)
        np.testing.assert_allclose(compiled(image)[0], network(image)[0], rtol=0, atol=1e-5)
    assert any(tmp_path.iterdir())


def test_unknown_settings_are_named(monkeypatch):
    network = network_of("Deraining")
    with monkeypatch.context() as context:
        context.setattr(shutil, "which", lambda name: None)
        with pytest.raises(InputError, match=r"needs a C\+\+ compiler, such as g\+\+; found none"):
            prepare(network, compile=True)
    with pytest.raises(InputError, match="precision is 'int8'; expected one of float32, bf16"):
        prepare(network, precision="int8")
    with pytest.raises(InputError, match="compile is 'fast'; expected one of default"):
        Restorer(network, compile="fast")
