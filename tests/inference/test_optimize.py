"""The network optimised for inference against the one it was made of."""

import copy
import functools
import shutil

import numpy as np
import pytest
import torch
from networks import small
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dgunet.base.errors import InputError
from dgunet.inference import restorer as restorer_module
from dgunet.inference.optimize import optimize_for_inference
from dgunet.inference.restorer import Restorer
from dgunet.model.checkpoint import save_checkpoint
from dgunet.model.registry import TASKS, task_module

DESIGNS = ["Deraining", "Compressive_Sensing"]  # the other tasks' networks are copies of the first


def images(network, *size):
    shape = (size[0], network.channels, *size[1:])
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("task", DESIGNS)
@torch.inference_mode()
def test_every_convolution_runs_in_channels_last(task):
    network = optimize_for_inference(small(task, stages=3))
    strides: dict[str, int] = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d) and module.out_channels > 1:
            module.register_forward_hook(
                lambda _conv, _given, made, name=name: strides.update({name: made.stride(1)})
            )
    network(images(network, 1, 32, 64))
    assert strides and set(strides.values()) == {1}


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
@pytest.mark.parametrize("task", DESIGNS)
@torch.inference_mode()
def test_constant_images_are_finite(task, precision):
    network = optimize_for_inference(small(task), precision)
    for value in (0.0, 1.0):
        image = torch.full_like(images(network, 1, 32, 32), value)
        assert torch.stack(network(image)).isfinite().all()


@torch.inference_mode()
def test_images_and_measurements_stay_in_float32():
    seen = {}
    for task in DESIGNS:
        network = optimize_for_inference(small(task, stages=3), "bf16")
        for module in network.modules():
            if type(module).__name__ in ("FGDM", "CAB", "Measurement"):
                module.register_forward_hook(
                    lambda m, _given, made: seen.update({type(m).__name__: made.dtype})
                )
        assert all(x.dtype == torch.float32 for x in network(images(network, 1, 32, 32)))
    half = torch.bfloat16
    assert seen == {"FGDM": torch.float32, "CAB": half, "Measurement": torch.float32}


@torch.inference_mode()
def test_a_large_mean_leaves_the_normalisation_its_digits():
    network = small("Denoising").double()
    image = images(network, 1, 32, 32).double()
    with torch.no_grad():
        for ipmm in network.ipmm:
            for block in ipmm.encoder:
                block.conv1.bias += 1000
    exact = network(image)[0]
    found = optimize_for_inference(network.float())(image.float())[0]
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-3)


def test_the_network_itself_is_left_as_it_was(tmp_path):
    network = small("Deblurring").train()
    before = copy.deepcopy(network.state_dict())
    fast = optimize_for_inference(network, "bf16")
    with torch.inference_mode():
        fast(images(network, 1, 16, 16))
    assert network.training and all(p.requires_grad for p in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) and value.is_contiguous()
    assert fast.config == network.config
    with pytest.raises(ValueError, match="optimised already"):
        optimize_for_inference(fast)
    with pytest.raises(ValueError, match="is optimised for inference"):
        save_checkpoint(tmp_path / "a.pth", fast)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", TASKS)
def test_a_change_to_a_model_file_changes_what_is_restored(task, monkeypatch):
    """There is one forward pass: the one that a reader finds in the task's folder."""
    image = np.random.default_rng(0).random((32, 40), np.float32)
    expected = Restorer(small(task, stages=3), device="cpu")(image)
    for part in ("FGDM", "CAB", "ConvBlock", "ISFF", "IPMM", "LastIPMM"):
        kind = getattr(task_module(task, "DGUNet"), part)
        with monkeypatch.context() as context:

            def changed(self, z, *given, forward=kind.forward):
                return forward(self, z / 2, *given)

            context.setattr(kind, "forward", changed)
            restored = Restorer(small(task, stages=3), device="cpu")(image)
        assert np.abs(restored - expected).max() > 1e-5, part


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


@pytest.mark.parametrize("task", DESIGNS)
@torch.inference_mode()
def test_features_leave_memory_as_soon_as_they_are_used(task):
    """Were every stage's kept until the next is through, it would be 540 floats per pixel."""
    network = small(task, width=40, width_step=20, stages=3)
    image = images(network, 1, 64, 64)
    floats = []
    for precision in ("float32", "bf16"):
        optimized = optimize_for_inference(network, precision)
        with PeakMemory() as memory:
            optimized(image)
        floats.append(memory.peak / (4 * 64 * 64))
    assert floats[0] < 0.6 * 540 and floats[1] < 0.4 * 540


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("task", DESIGNS)
def test_compiled_images_are_the_plain_networks(task, monkeypatch, request):
    """One design is compiled, for a minute or from pytest's cache; the other is only traced."""
    folder = request.config.cache.mkdir("compiled")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    if task != "Deraining":
        trace = functools.partial(torch.compile, backend="aot_eager")
        monkeypatch.setattr(torch, "compile", lambda call, mode, **options: trace(call, **options))
    network = small(task)
    image = images(network, 1, 32, 64)
    with torch.inference_mode():
        compiled = optimize_for_inference(network, compile=True)
        np.testing.assert_allclose(compiled(image)[0], network(image)[0], rtol=0, atol=1e-5)
    assert any(folder.iterdir())


def test_more_sizes_than_can_be_compiled_are_told(monkeypatch, caplog):
    monkeypatch.setattr(restorer_module, "COMPILED_SIZES", 2)
    restorer = Restorer(small("Deraining"), device="cpu", optimize=False)
    restorer.compiled = set()
    for side in (16, 16, 24, 16, 32, 40):
        restorer.restore(torch.rand(1, 3, side, 16))
    assert caplog.messages == ["images of more than 2 sizes: not compiled from here"]


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler, such as g\+\+; found none"):
        optimize_for_inference(small("Deraining"), compile=True)
