import numpy as np
import pytest
import torch
from scipy import ndimage

from dgunet.model.registry import TASKS, task_module
from dgunet.training.losses import charbonnier, laplacian

LOSSES = {task: task_module(task, "train").TASK.loss for task in TASKS}
KERNEL = np.outer([0.05, 0.25, 0.4, 0.25, 0.05], [0.05, 0.25, 0.4, 0.25, 0.05])


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def scipy_laplacian(plane):
    def blur(z):
        return ndimage.correlate(z, KERNEL, mode="nearest")

    expanded = np.zeros_like(plane)
    expanded[::2, ::2] = 4 * blur(plane)[::2, ::2]
    return plane - blur(expanded)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (1, 7), (5, 4), (12, 17)])
def test_laplacian_is_scipys(size):
    image = rand(2, 3, *size, dtype=torch.float64)
    expected = [[scipy_laplacian(plane) for plane in sample] for sample in image.numpy()]
    np.testing.assert_allclose(laplacian(image).numpy(), expected, atol=1e-14)
    np.testing.assert_allclose(laplacian(image.float()).numpy(), expected, atol=1e-6)


def test_charbonnier_in_closed_form():
    restored, target = torch.full((2, 3, 5, 5), 0.75), torch.full((2, 3, 5, 5), 0.25)
    assert charbonnier(restored, target).item() == pytest.approx((0.25 + 1e-6) ** 0.5)
    assert charbonnier(restored, target, eps=0.1).item() == pytest.approx((0.25 + 0.01) ** 0.5)
    assert charbonnier(target, target).item() == pytest.approx(1e-3)


def test_losses_by_task():
    target = rand(1, 3, 6, 6)
    stages = [target + 0.1, target - 0.2]
    edges = sum(charbonnier(laplacian(s), laplacian(target)) for s in stages)
    restoration = (sum(charbonnier(s, target) for s in stages) + 0.05 * edges).item()
    for task in ("Deblurring", "Deraining"):
        assert LOSSES[task](stages, target).item() == pytest.approx(restoration, rel=1e-6)
    clamped = [s.clamp(0, 1) for s in stages]
    denoising = sum(charbonnier(s, target) for s in clamped).item()
    assert LOSSES["Denoising"](stages, target).item() == pytest.approx(denoising, rel=1e-6)
    squared = sum(torch.nn.functional.mse_loss(s, target) for s in clamped).item()
    assert LOSSES["Compressive_Sensing"](stages, target).item() == pytest.approx(squared, rel=1e-6)


@pytest.mark.parametrize("task", sorted(LOSSES))
def test_gradients(task):
    target = rand(1, 2, 3, 4, dtype=torch.float64)
    stages = [0.1 + 0.8 * rand(1, 2, 3, 4, seed=seed, dtype=torch.float64) for seed in (1, 2)]
    stages.append(target.clone())  # a derivative of 0 divided by 0, if √ were taken of d² alone
    for stage in stages:
        stage.requires_grad_()
    loss = LOSSES[task]
    assert torch.autograd.gradcheck(lambda *s: loss(s, target), stages, eps=1e-7, atol=1e-4)


@pytest.mark.parametrize("task", sorted(LOSSES))
def test_autocast_and_half_precision_compute_in_float32(task):
    stages = [rand(1, 3, 8, 8, seed=seed).bfloat16() for seed in (1, 2)]
    target = rand(1, 3, 8, 8)
    expected = LOSSES[task]([stage.float() for stage in stages], target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LOSSES[task](stages, target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


@pytest.mark.parametrize("task", sorted(LOSSES))
def test_shapes_are_not_broadcast_and_integers_refused(task):
    target = torch.zeros(2, 3, 4, 4)
    for shape in ((2, 3, 4, 5), (2, 1, 4, 4), (3, 4, 4)):
        with pytest.raises(ValueError, match="but target is"):
            LOSSES[task]([target, torch.zeros(shape)], target)
    with pytest.raises(ValueError, match="uint8"):
        LOSSES[task]([target.byte()], target)
