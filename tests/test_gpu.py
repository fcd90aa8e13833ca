"""GPUs: first what can be seen without one, then what only one can show (`pytest -m gpu`)."""

import logging

import numpy as np
import pytest
import torch
from networks import small
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from training_runs import trainer_for, write_pairs

from dgunet.inference.device import tf32
from dgunet.inference.optimize import optimize_for_inference
from dgunet.inference.restorer import Restorer
from dgunet.model.network import Network
from dgunet.model.registry import MODELS, TASKS, build_model, task_module
from dgunet.training.trainer import AUTOCAST

LOSSES = {task: task_module(task, "train").TASK.loss for task in TASKS}
CASES = [(task, model) for task in TASKS for model in MODELS]
DESIGNS = ["Deraining", "Compressive_Sensing"]  # the other networks are like these
CUDA = torch.device("cuda")


def network_and_image(task: str, model: str = "DGUNet") -> tuple[Network, torch.Tensor]:
    network = small(task, model, stages=3)
    return network, torch.rand(2, network.channels, 64, 96)


# Without a GPU


def fake_gpus_work() -> bool:
    """Builds without CUDA have none, and that of PyTorch 2.6 asks a driver for its version."""
    try:
        with FakeTensorMode():
            torch.empty(1, device=CUDA).uniform_()
    except (RuntimeError, AssertionError):
        return False
    return True


@pytest.mark.skipif(not fake_gpus_work(), reason="this PyTorch has no fake GPU")
@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
@pytest.mark.parametrize("task", DESIGNS)
def test_a_step_stays_on_its_device(task, precision, monkeypatch):
    """Of tensors that say they are on a GPU: no operator meets one of the CPU."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    dtype = AUTOCAST[precision]
    fast = optimize_for_inference(network_and_image(task)[0], precision)
    with FakeTensorMode():
        with CUDA:
            network, image = network_and_image(task)
            average = network_and_image(task)[0].requires_grad_(False)
        for module in fast.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                fake = torch.empty(weight.shape, dtype=weight.dtype, device=CUDA)
                setattr(module, name, nn.Parameter(fake, False))
        with torch.autocast("cuda", dtype, enabled=dtype is not None):
            stages = network(image)
        loss = LOSSES[task](stages, image)
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)  # the backward pass wants a GPU
        gradients = [p.grad for p in network.parameters()]
        norm = nn.utils.get_total_norm(gradients)
        nn.utils.clip_grads_with_norm_(network.parameters(), 0.1, norm)
        with torch.no_grad():
            weights = (list(net.parameters()) for net in (average, network))
            torch._foreach_lerp_(*weights, 0.1)
        assert {t.device for t in (*stages, loss, norm, *gradients)} == {torch.device("cuda", 0)}
        assert loss.dtype == torch.float32
        with torch.inference_mode():
            restored = fast(image)
        assert {(t.device.type, t.dtype) for t in restored} == {("cuda", torch.float32)}


@pytest.mark.parametrize(("task", "optimise"), zip(DESIGNS, (False, True), strict=True))
def test_the_forward_pass_is_one_graph(task, optimise):
    network, image = network_and_image(task)
    network = optimize_for_inference(network, "bf16") if optimise else network
    with torch.inference_mode(optimise):
        explained = torch._dynamo.explain(network)(image[:1])
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


# On a GPU

without = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def gpu(test):
    return pytest.mark.gpu(without(test))


@pytest.fixture(autouse=True)
def full_precision():
    with tf32(False):  # which keeps 10 bits
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data"))


def difference(first, second) -> float:
    pairs = zip(first, second, strict=True)
    return max(float((a.cpu().float() - b.cpu().float()).abs().max().detach()) for a, b in pairs)


@gpu
@pytest.mark.parametrize(("task", "model"), CASES)
def test_images_and_gradients_are_the_cpus(task, model):
    network, image = network_and_image(task, model)
    expected = network(image)
    LOSSES[task](expected, image.flip(-1)).backward()
    gradients = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    network.cuda()
    found = network(image.cuda())
    assert difference(found, expected) < 1e-4
    LOSSES[task](found, image.cuda().flip(-1)).backward()
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        assert torch.allclose(parameter.grad.cpu(), gradient, rtol=1e-2, atol=1e-4)


@gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("task", TASKS)
def test_flat_images_stay_finite_under_autocast(task, dtype):
    network, image = network_and_image(task)
    flat = torch.stack([torch.zeros_like(image[0]), torch.ones_like(image[0]), image[0]]).cuda()
    with torch.autocast("cuda", dtype):
        images = network.cuda()(flat)
    LOSSES[task](images, flat).backward()
    assert all(image.isfinite().all() for image in images)


@gpu
@pytest.mark.parametrize(
    ("precision", "bound"), [("float32", 1e-4), ("tf32", 1e-2), ("bf16", 0.1), ("fp16", 0.02)]
)
@pytest.mark.parametrize("task", TASKS)
def test_a_restorer_restores_as_on_the_cpu(task, precision, bound):
    network, image = network_and_image(task)
    expected = Restorer(network, device="cpu", tile=192)(image[..., :61, :93])
    found = Restorer(network, device="cuda", tile=192, precision=precision)(image[..., :61, :93])
    assert difference([found], [expected]) < bound
    if precision == "float32" and network.channels == 3:
        ensembles = (
            Restorer(network, device=device, self_ensemble=True)(image) for device in ("cpu", CUDA)
        )
        assert difference(*([images] for images in ensembles)) < 1e-4


@gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("task", DESIGNS)
def test_compiled_networks_restore_as_others(task, mode):
    network, image = network_and_image(task)
    expected = Restorer(network, device="cuda").stages(image)
    restorer = Restorer(network, device="cuda", compile=mode)
    for _ in range(3):  # CUDA graphs are recorded in the second call
        assert difference(restorer.stages(image), expected) < 1e-4


@gpu
def test_a_gpu_that_is_too_small(caplog):
    torch.manual_seed(0)
    network = build_model("Denoising", "DGUNet", {"width": 48, "width_step": 24, "stages": 3})
    image = np.random.default_rng(0).random((1024, 1024, 3), np.float32)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2**30 / total)
    try:
        with caplog.at_level(logging.WARNING):
            restored = Restorer(network, device="cuda", tile=0)(image)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "going on with" in caplog.text and np.isfinite(restored).all()
    torch.cuda.reset_peak_memory_stats()
    tile = 512
    Restorer(network, device="cuda", tile=tile)(image)
    per_channel = torch.cuda.max_memory_allocated() / (4 * 72 * tile**2)
    assert per_channel < 16  # floats per pixel and channel: what `largest_tile` reckons with


KEYS = {"OPTIM__EMA": 0.9, "OPTIM__CLIP_GRAD": 1.0, "DATA__MIXUP_AFTER": 0}


@gpu
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"GPU": list(range(torch.cuda.device_count()))},  # nn.DataParallel, where there are several
        {"TRAINING__COMPILE": "default"},
        {"TRAINING__COMPILE": "reduce-overhead", "TRAINING__VAL_DIR": ""},
        {"TRAINING__CHANNELS_LAST": True, "OPTIM__ACCUMULATE": 2},
    ],
    ids=str,
)
def test_training_takes_the_steps_of_the_cpu(keys, data, tmp_path):
    runs = []
    for place in ({"GPU": []}, {"GPU": [0], **keys}):
        trainer = trainer_for(data, tmp_path / str(len(runs)), **KEYS, **place)
        losses = [trainer.step(samples) for samples in list(trainer.loader)]
        runs.append((losses, [p.detach().cpu() for p in trainer.weights.parameters()]))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-3)
    assert difference(runs[0][1], runs[1][1]) < 1e-3  # three steps of 3e-5


@gpu
@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_training_in_a_lower_precision_lowers_the_loss(precision, data, tmp_path):
    keys = {"TRAINING__PRECISION": precision, "OPTIM__LR_INITIAL": 1e-2, "GPU": [0]}
    trainer = trainer_for(data, tmp_path, TRAINING__VAL_DIR="", **keys)
    samples, losses = next(iter(trainer.loader)), []
    for epoch in range(1, 7):
        trainer.begin_epoch(epoch)
        losses.append(trainer.step(samples))
    assert losses[-1] < losses[0]


@gpu
def test_a_step_waits_for_the_gpu_once(data, tmp_path):
    trainer = trainer_for(data, tmp_path, GPU=[0], TRAINING__VAL_DIR="", **KEYS)
    samples = list(trainer.loader)
    trainer.step(samples[0])
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning) as waits:
            trainer.step(samples[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("dgunet/training" in wait.filename for wait in waits) == 1


@gpu
def test_a_run_moves_between_cpu_and_gpu(data, tmp_path):
    for epochs, place in ((1, []), (2, [0]), (3, [])):
        keys = {"OPTIM__NUM_EPOCHS": epochs, "TRAINING__RESUME": epochs > 1, "GPU": place}
        trainer = trainer_for(data, tmp_path, **KEYS, **keys)
        assert trainer.epoch == epochs and trainer.averaged == 3 * (epochs - 1)
        trainer.run()
        assert all(p.isfinite().all() for p in trainer.weights.parameters())
