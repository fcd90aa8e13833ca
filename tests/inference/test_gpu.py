"""What only a GPU can show: `pytest -m gpu`. Skipped where there is none."""

import pytest
import torch
from torch import nn

from dgunet.inference.restorer import Restorer
from dgunet.model.registry import MODELS, TASKS, build_model, task_module

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
LOSSES = {task: task_module(task, "train").TASK.loss for task in TASKS}
CASES = [(task, model) for task in TASKS for model in MODELS]


@pytest.fixture(autouse=True)
def full_precision():
    """No TF32: it keeps 10 bits."""
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


def network_and_image(task: str, model: str = "DGUNet") -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    network = build_model(task, model, {"width": 8, "width_step": 4, "stages": 3})
    return network, torch.rand(2, network.channels, 64, 96)


def difference(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    pairs = zip(first, second, strict=True)
    return max(float((a.cpu() - b.cpu()).abs().max().detach()) for a, b in pairs)


@pytest.mark.parametrize(("task", "model"), CASES)
def test_as_on_the_cpu(task, model):
    network, image = network_and_image(task, model)
    expected = network(image)
    loss = LOSSES[task](expected, image.flip(-1))
    loss.backward()
    gradients = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    network.cuda()
    found = network(image.cuda())
    assert difference(found, expected) < 1e-4
    LOSSES[task](found, image.cuda().flip(-1)).backward()
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        assert torch.allclose(parameter.grad.cpu(), gradient, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("task", TASKS)
def test_autocast_is_finite(task, dtype):
    network, image = network_and_image(task)
    flat = torch.stack([torch.zeros_like(image[0]), torch.ones_like(image[0]), image[0]])
    with torch.autocast("cuda", dtype):
        images = network.cuda()(flat.cuda())
    LOSSES[task](images, flat.cuda()).backward()
    assert all(image.isfinite().all() for image in images)


@pytest.mark.parametrize("task", TASKS)
def test_data_parallel(task):
    network, image = network_and_image(task)
    network.cuda()
    parallel = nn.DataParallel(network, device_ids=[0])
    assert difference(parallel(image.cuda()), network(image.cuda())) < 1e-5


def test_compiled():
    network, image = network_and_image("Deraining")
    network.cuda()
    with torch.no_grad():
        assert difference(torch.compile(network)(image.cuda()), network(image.cuda())) < 1e-4


def test_the_self_ensemble_is_as_on_the_cpu():
    network, image = network_and_image("Denoising")
    expected, found = (
        Restorer(network, device=device, self_ensemble=True).restore(image[..., :61, :93])
        for device in ("cpu", "cuda")
    )
    assert found.is_cuda and difference([found], [expected]) < 1e-4
