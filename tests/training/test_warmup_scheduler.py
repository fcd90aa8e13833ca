import doctest
import io
import json
import math

import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR
from training_runs import ROOT
from warmup_scheduler import GradualWarmupScheduler

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


@pytest.mark.parametrize("task", sorted(SCHEDULES))
def test_learning_rates_are_the_published(task):
    """With the optimizer and scheduler as the task's published script builds them."""
    recipe = SCHEDULES[task]
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=recipe["LR_INITIAL"])
    cosine = CosineAnnealingLR(optimizer, T_max=recipe["COSINE_T_MAX"], eta_min=recipe["LR_MIN"])
    warmup = recipe["WARMUP_EPOCHS"]
    scheduler = GradualWarmupScheduler(optimizer, 1, total_epoch=warmup, after_scheduler=cosine)
    seen = run(optimizer, scheduler, recipe["NUM_EPOCHS"])
    assert [lr for (lr,) in seen] == pytest.approx(recipe["lr_of_epoch"], rel=1e-12)


def test_a_run_may_be_as_short_as_the_warmup():
    optimizer = sgd(0.3)
    cosine = CosineAnnealingLR(optimizer, T_max=0)  # what is left of three epochs
    seen = run(optimizer, GradualWarmupScheduler(optimizer, 1, 3, cosine), 3)
    assert [lr for (lr,) in seen] == pytest.approx([0.1, 0.2, 0.3])


def test_multiplier_applies_to_every_group():
    optimizer = sgd(0.1, 0.01)
    cosine = CosineAnnealingLR(optimizer, T_max=2, eta_min=0.001)
    scheduler = GradualWarmupScheduler(optimizer, 8, 4, cosine)
    assert lrs(optimizer) == [0.1, 0.01]
    factors = [2.75, 4.5, 6.25, 8, 8]
    seen = run(optimizer, scheduler, 7)
    for group, base in enumerate([0.1, 0.01]):
        expected = [base * factor for factor in factors] + [0.001 + (8 * base - 0.001) / 2, 0.001]
        assert [step[group] for step in seen] == pytest.approx(expected)


def test_without_a_scheduler_after_the_rate_stays():
    optimizer = sgd(0.2)
    scheduler = GradualWarmupScheduler(optimizer, 1, 2)
    assert isinstance(scheduler, lr_scheduler.LRScheduler)
    assert lrs(optimizer) == [0.0]
    assert run(optimizer, scheduler, 4) == [[0.1], [0.2], [0.2], [0.2]]


AFTER = {
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, T_max=4, eta_min=0.001),
    "step": lambda optimizer: StepLR(optimizer, 2, gamma=0.7),
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5 / (1 + epoch)),
    "linear": lambda optimizer: lr_scheduler.LinearLR(optimizer, start_factor=0.2),
}


@pytest.mark.parametrize("multiplier", [1, 10])
@pytest.mark.parametrize("build", AFTER.values(), ids=AFTER)
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


@pytest.mark.parametrize("stop", [0, 2, 3, 4, 7])
@pytest.mark.parametrize("after", [None, "cosine", "step"])
def test_resuming_from_a_file_continues_exactly(after, stop):
    def build():
        optimizer = sgd(0.1, 0.03)
        scheduler = AFTER[after](optimizer) if after else None
        return optimizer, GradualWarmupScheduler(optimizer, 1.5, 3, scheduler)

    def go_on(optimizer, scheduler, epochs):
        seen = []
        for _ in epochs:
            optimizer.step()
            scheduler.step()
            seen.append(lrs(optimizer))
        return seen

    optimizer, scheduler = build()
    go_on(optimizer, scheduler, range(stop))
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    expected = go_on(optimizer, scheduler, range(stop, 14))

    resumed, new_scheduler = build()
    resumed.load_state_dict(states["optimizer"])
    new_scheduler.load_state_dict(states["scheduler"])
    assert new_scheduler.get_last_lr() == lrs(resumed)
    assert go_on(resumed, new_scheduler, range(stop, 14)) == expected


def test_wrong_arguments_are_refused():
    optimizer = sgd(0.1)
    for multiplier in (0.9, 0, -1, math.nan):
        with pytest.raises(ValueError, match="multiplier"):
            GradualWarmupScheduler(optimizer, multiplier, 3)
    with pytest.raises(ValueError, match="total_epoch"):
        GradualWarmupScheduler(optimizer, 1, 0)
    with pytest.raises(ValueError, match="another optimizer"):
        GradualWarmupScheduler(optimizer, 1, 3, StepLR(sgd(0.1), 2))
    parts = [StepLR(optimizer, 1, gamma=0.5), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    sequence = lr_scheduler.SequentialLR(optimizer, parts, milestones=[2])
    for after in (ReduceLROnPlateau(optimizer), sequence):
        with pytest.raises(ValueError, match=r"must not be a (ReduceLROnPlateau|SequentialLR)"):
            GradualWarmupScheduler(optimizer, 1, 3, after)
    assert lrs(optimizer) == [0.1]


def test_the_readme_is_true():
    readme = ROOT / "pytorch-gradual-warmup-lr" / "README.md"
    failed, tried = doctest.testfile(str(readme), module_relative=False)
    assert tried > 0
    assert failed == 0
