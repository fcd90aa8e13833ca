import copy
import doctest
import io
import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR
from warmup_scheduler import GradualWarmupScheduler

ROOT = Path(__file__).resolve().parents[2]
SCHEDULES = json.loads((ROOT / "tests" / "fixtures" / "lr_schedules.json").read_text())

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


def sgd(*lrs):
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in lrs]
    return torch.optim.SGD(groups, lr=1.0)


def lrs(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def run(optimizer, scheduler, epochs):
    """Return every epoch's learning rates, with `step` before the first and after each."""
    seen = []
    scheduler.step()
    for _ in range(epochs):
        optimizer.step()
        assert scheduler.get_last_lr() == scheduler.get_lr() == lrs(optimizer)
        seen.append(lrs(optimizer))
        scheduler.step()
    return seen


def published(task):
    """Return a task's optimizer and scheduler, as its training script builds them."""
    recipe = SCHEDULES[task]
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=recipe["LR_INITIAL"])
    cosine = CosineAnnealingLR(optimizer, T_max=recipe["COSINE_T_MAX"], eta_min=recipe["LR_MIN"])
    warmup = recipe["WARMUP_EPOCHS"]
    scheduler = GradualWarmupScheduler(optimizer, 1, total_epoch=warmup, after_scheduler=cosine)
    return optimizer, scheduler, recipe


@pytest.mark.parametrize("task", sorted(SCHEDULES))
def test_published_learning_rates(task):
    optimizer, scheduler, recipe = published(task)
    seen = run(optimizer, scheduler, recipe["NUM_EPOCHS"])
    assert [lr for (lr,) in seen] == pytest.approx(recipe["lr_of_epoch"], rel=1e-12)


@pytest.mark.parametrize("task", sorted(SCHEDULES))
def test_going_forward_to_an_epoch(task):
    _, _, recipe = published(task)
    epochs = recipe["NUM_EPOCHS"]
    for epoch in (1, 3, 4, 5, epochs // 2, epochs):
        optimizer, scheduler, _ = published(task)  # whose optimizer has made no step
        scheduler.step(epoch)
        scheduler.step(epoch)
        assert scheduler.last_epoch == epoch
        assert lrs(optimizer) == pytest.approx([recipe["lr_of_epoch"][epoch - 1]], rel=1e-12)


@pytest.mark.parametrize("period", [1, 2, 5, 40])
def test_cosine_follows_its_formula_beyond_its_period(period):
    optimizer = sgd(0.3)
    cosine = CosineAnnealingLR(optimizer, T_max=period, eta_min=0.01)
    seen = run(optimizer, GradualWarmupScheduler(optimizer, 1, 2, cosine), 20)
    expected = [0.15, 0.3]
    expected += [0.01 + 0.29 * (1 + math.cos(math.pi * k / period)) / 2 for k in range(18)]
    assert [lr for (lr,) in seen] == pytest.approx(expected, rel=1e-12)


def test_a_run_as_short_as_the_warmup():
    optimizer = sgd(0.3)
    cosine = CosineAnnealingLR(optimizer, T_max=0)  # what is left of three epochs
    seen = run(optimizer, GradualWarmupScheduler(optimizer, 1, 3, cosine), 3)
    assert [lr for (lr,) in seen] == pytest.approx([0.1, 0.2, 0.3])


def test_multiplier_and_several_groups():
    optimizer = sgd(0.1, 0.01)
    cosine = CosineAnnealingLR(optimizer, T_max=2, eta_min=0.001)
    scheduler = GradualWarmupScheduler(optimizer, 8, 4, cosine)
    assert lrs(optimizer) == [0.1, 0.01]
    factors = [2.75, 4.5, 6.25, 8, 8]
    seen = run(optimizer, scheduler, 7)
    for group, base in enumerate([0.1, 0.01]):
        expected = [base * factor for factor in factors] + [0.001 + (8 * base - 0.001) / 2, 0.001]
        assert [step[group] for step in seen] == pytest.approx(expected)


def test_before_the_first_step_and_without_a_scheduler_after():
    optimizer = sgd(0.2)
    scheduler = GradualWarmupScheduler(optimizer, 1, 2)
    assert isinstance(scheduler, lr_scheduler.LRScheduler)
    assert lrs(optimizer) == [0.0]
    assert run(optimizer, scheduler, 4) == [[0.1], [0.2], [0.2], [0.2]]
    optimizer = sgd(0.2)
    seen = run(optimizer, GradualWarmupScheduler(optimizer, 3, 2), 4)
    assert [lr for (lr,) in seen] == pytest.approx([0.4, 0.6, 0.6, 0.6])


@pytest.mark.parametrize("multiplier", [1, 10])
@pytest.mark.parametrize(
    "build",
    [
        lambda optimizer: StepLR(optimizer, 2, gamma=0.5),
        lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.9),
        lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [1, 3]),
        lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5 / (1 + epoch)),
        lambda optimizer: lr_scheduler.LinearLR(optimizer, start_factor=0.2),
        lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 2),
    ],
)
def test_any_scheduler_goes_on_from_the_multiplied_rate(build, multiplier):
    alone = sgd(0.1 * multiplier)
    scheduler = build(alone)
    expected = []
    for _ in range(6):
        expected += lrs(alone)
        alone.step()
        scheduler.step()
    optimizer = sgd(0.1)
    seen = run(optimizer, GradualWarmupScheduler(optimizer, multiplier, 3, build(optimizer)), 9)
    assert [lr for (lr,) in seen[3:]] == pytest.approx(expected)


def test_several_schedulers_in_sequence_after_the_warmup():
    def sequence(optimizer):
        parts = [StepLR(optimizer, 1, gamma=0.5), lr_scheduler.ExponentialLR(optimizer, 0.9)]
        return lr_scheduler.SequentialLR(optimizer, parts, milestones=[2])

    optimizer = sgd(0.4)
    seen = run(optimizer, GradualWarmupScheduler(optimizer, 1, 2, sequence(optimizer)), 6)
    assert [lr for (lr,) in seen] == pytest.approx([0.2, 0.4, 0.4, 0.2, 0.4, 0.36])
    optimizer = sgd(0.4)
    with pytest.raises(ValueError, match="SequentialLR"):
        GradualWarmupScheduler(optimizer, 2, 2, sequence(optimizer))


@pytest.mark.parametrize("multiplier", [1, 4])
def test_reduce_on_plateau(multiplier):
    optimizer = sgd(0.1)
    plateau = ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
    scheduler = GradualWarmupScheduler(optimizer, multiplier, 2, plateau)
    top = 0.1 * multiplier
    scheduler.step()
    seen = []
    for loss in (9.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.1):
        optimizer.step()
        seen += lrs(optimizer)
        scheduler.step(metrics=loss)
    # The loss of epoch 2, the first at the full rate, is the first to count.
    first = 0.05 if multiplier == 1 else 0.25
    expected = [first, top, top, top, top / 2, top / 2, top / 2, top / 4]
    assert seen == pytest.approx(expected)


def test_plateau_needs_metrics_only_after_the_warmup():
    optimizer = sgd(0.1)
    scheduler = GradualWarmupScheduler(optimizer, 1, 2, ReduceLROnPlateau(optimizer))
    scheduler.step()
    scheduler.step()
    with pytest.raises(ValueError, match="metrics"):
        scheduler.step()
    with pytest.raises(TypeError, match="metrics"):
        scheduler.step(0.5)
    assert scheduler.last_epoch == 2
    scheduler.step(3, 0.5)
    assert (scheduler.last_epoch, plateau_best(scheduler)) == (3, 0.5)


def plateau_best(scheduler):
    return scheduler.after_scheduler.best


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


AFTER = {
    "none": lambda optimizer: None,
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, T_max=7, eta_min=0.001),
    "step": lambda optimizer: StepLR(optimizer, 2, gamma=0.7),
    "multistep": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [2, 5], gamma=0.3),
    "plateau": lambda optimizer: ReduceLROnPlateau(optimizer, factor=0.7, patience=1),
}


@pytest.mark.parametrize("stop", range(8))
@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("optimizer_first", [True, False])
def test_resuming_from_a_file_continues_exactly(after, stop, optimizer_first):
    def build():
        optimizer = sgd(0.1, 0.03)
        return optimizer, GradualWarmupScheduler(optimizer, 1.5, 3, AFTER[after](optimizer))

    def go_on(optimizer, scheduler, epochs):
        seen = []
        for epoch in epochs:
            optimizer.step()
            scheduler.step(metrics=1 / (1 + epoch // 4))
            seen.append(lrs(optimizer))
        return seen

    optimizer, scheduler = build()
    go_on(optimizer, scheduler, range(stop))
    states = through_a_file(
        {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    )
    kept = copy.deepcopy(states)
    expected = go_on(optimizer, scheduler, range(stop, 14))

    resumed, new_scheduler = build()
    if optimizer_first:
        resumed.load_state_dict(states["optimizer"])
    new_scheduler.load_state_dict(states["scheduler"])
    if not optimizer_first:
        resumed.load_state_dict(states["optimizer"])
    assert new_scheduler.get_last_lr() == lrs(resumed)
    assert new_scheduler.finished == (stop > 3)
    assert go_on(resumed, new_scheduler, range(stop, 14)) == expected
    assert states["scheduler"] == kept["scheduler"]


def test_schedulers_built_after_the_optimizer_was_restored():
    """The groups then hold the rate they were saved with, and the base rate as `initial_lr`."""
    for task, epoch in [("Denoising", 2), ("Denoising", 50), ("Deraining", 200)]:
        optimizer, scheduler, recipe = published(task)
        scheduler.step(epoch)
        restored = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1.0)
        restored.load_state_dict(through_a_file(optimizer.state_dict()))
        cosine = CosineAnnealingLR(restored, recipe["COSINE_T_MAX"], eta_min=recipe["LR_MIN"])
        scheduler = GradualWarmupScheduler(restored, 1, recipe["WARMUP_EPOCHS"], cosine)
        scheduler.step(epoch)
        seen = []
        for _ in range(epoch, epoch + 10):
            seen += lrs(restored)
            scheduler.step()
        expected = recipe["lr_of_epoch"][epoch - 1 : epoch + 9]
        assert seen == pytest.approx(expected, rel=1e-12)


def test_a_scheduler_after_that_is_itself_resumed():
    optimizer = sgd(0.3)
    optimizer.param_groups[0]["initial_lr"] = 0.5
    cosine = CosineAnnealingLR(optimizer, T_max=10, eta_min=0.1, last_epoch=3)
    seen = run(optimizer, GradualWarmupScheduler(optimizer, 1, 2, cosine), 5)
    expected = [0.25, 0.5]
    expected += [0.1 + 0.4 * (1 + math.cos(math.pi * k / 10)) / 2 for k in (4, 5, 6)]
    assert [lr for (lr,) in seen] == pytest.approx(expected)


def test_tensor_learning_rates_stay_the_same_tensor():
    lr = torch.tensor(0.3, dtype=torch.float64)
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=lr, foreach=False)
    cosine = CosineAnnealingLR(optimizer, T_max=4, eta_min=0.1)
    scheduler = GradualWarmupScheduler(optimizer, 1, 3, cosine)
    seen = [rate for (rate,) in run(optimizer, scheduler, 6)]
    assert seen == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.2 + 0.1 * math.cos(math.pi / 4), 0.2])
    assert optimizer.param_groups[0]["lr"] is lr
    assert scheduler.get_last_lr()[0] is not lr


def test_wrong_arguments():
    optimizer = sgd(0.1)
    for multiplier in (0.9, 0, -1, math.nan):
        with pytest.raises(ValueError, match="multiplier"):
            GradualWarmupScheduler(optimizer, multiplier, 3)
    with pytest.raises(ValueError, match="total_epoch"):
        GradualWarmupScheduler(optimizer, 1, 0)
    with pytest.raises(ValueError, match="another optimizer"):
        GradualWarmupScheduler(optimizer, 1, 3, StepLR(sgd(0.1), 2))
    assert lrs(optimizer) == [0.1]
    scheduler = GradualWarmupScheduler(optimizer, 1, 3)
    scheduler.step(2)
    with pytest.raises(ValueError, match="from epoch 2 to 1"):
        scheduler.step(1)


def test_a_state_that_does_not_fit():
    optimizer = sgd(0.1)
    scheduler = GradualWarmupScheduler(optimizer, 1, 3)
    with pytest.raises(ValueError, match="not a GradualWarmupScheduler"):
        scheduler.load_state_dict(StepLR(optimizer, 2).state_dict())
    state = scheduler.state_dict()
    other = sgd(0.1)
    with_cosine = GradualWarmupScheduler(other, 1, 3, CosineAnnealingLR(other, 5))
    with pytest.raises(ValueError, match="without an after_scheduler, this one with"):
        with_cosine.load_state_dict(state)
    with pytest.raises(ValueError, match="with an after_scheduler, this one without"):
        scheduler.load_state_dict(with_cosine.state_dict())


def test_other_warnings_of_the_scheduler_after_come_through():
    class Chatty(StepLR):
        def step(self):
            warnings.warn("heard", UserWarning, stacklevel=2)
            super().step()

    optimizer = sgd(0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = GradualWarmupScheduler(optimizer, 1, 1, Chatty(optimizer, 1))
    scheduler.step(2)
    with pytest.warns(UserWarning, match="heard"):
        scheduler.step()


def test_the_readme_is_true():
    readme = ROOT / "pytorch-gradual-warmup-lr" / "README.md"
    failed, tried = doctest.testfile(str(readme), module_relative=False)
    assert tried > 0
    assert failed == 0
