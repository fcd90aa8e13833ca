"""The state that a run goes on from is checked whole before any of it is loaded."""

import copy

import pytest
import torch
from training_runs import trainer_for

from dgunet.base.errors import InputError
from dgunet.model.checkpoint import read_checkpoint
from dgunet.training import state as training_state
from dgunet.training.state import load_state


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run that has ended, and one like it that has not begun."""
    folder = tmp_path_factory.mktemp("state")
    ended = trainer_for(data, folder / "ended", OPTIM__NUM_EPOCHS=1)
    ended.run()
    return trainer_for(data, folder / "new"), read_checkpoint(ended.latest)


def moments(state):
    return state["optimizer"]["state"]


def without_a_parameter(state):
    del moments(state)[3]


def other_name(state):
    moments(state)[2]["momentum"] = moments(state)[2].pop("exp_avg")


CHANGES = {  # what is damaged → how
    **{
        f"{key} {value!r}": lambda state, key=key, value=value: state.update({key: value})
        for key, values in {
            "epoch": (10**18, 500, 0, -1, 1.0, True, "2", None),
            "epochs": (float("nan"), float("inf"), -1, "3"),
            "batch": (-1, 10**12, 1.5, 1000),
            "validated": (-1, None),
            "psnr": ("30",),
            "best": ({}, {"epoch": -1, "psnr": 30.0}, {"epoch": 1, "psnr": "x"}, 3),
            "loss_sum": (float("nan"), torch.zeros(3)),
            "samples": (0, 2**70, "7"),
            "seconds": (float("-inf"), "1"),
            "scaler": ([], {"scale": "x"}),
            "random": (
                {},
                {"torch": torch.zeros(3)},
                {"torch": "x"},
                {"torch": torch.zeros(5056).byte()},
            ),
            "config": ({}, [], {"TRAINING": {"MINUTES": "x"}}, {"TRAINING": 3}),
            "optimizer": ({}, [], {"state": []}, {"state": {}}),
        }.items()
        for value in values
    },
    "optimizer: a parameter is missing": without_a_parameter,
    "optimizer: one too many": lambda state: moments(state).update({10**6: moments(state)[0]}),
    "optimizer: another shape": lambda state: moments(state)[1].update(exp_avg=torch.zeros(1, 7)),
    "optimizer: another name": other_name,
    "optimizer: no numbers": lambda state: moments(state)[0]["exp_avg_sq"].fill_(float("nan")),
    "optimizer: a step of text": lambda state: moments(state)[0].update(step="x"),
}


def test_a_damaged_state_is_refused_and_nothing_of_it_loaded(run, monkeypatch):
    trainer, whole = run
    before = copy.deepcopy(trainer.model.state_dict())
    place = trainer.epoch, trainer.batch, trainer.best
    trainer.latest.touch()
    for name, change in CHANGES.items():
        damaged = copy.deepcopy(whole)
        change(damaged["training"])
        monkeypatch.setattr(training_state, "read_checkpoint", lambda path, read=damaged: read)
        with pytest.raises(InputError) as caught:
            load_state(trainer)
        part = name.partition(" ")[0].strip(":")
        message = f"{trainer.latest}: the {part} of its training state does not fit the run"
        assert str(caught.value) == message, name
    assert all(map(torch.equal, before.values(), trainer.model.state_dict().values()))
    assert place == (trainer.epoch, trainer.batch, trainer.best)
    monkeypatch.setattr(training_state, "read_checkpoint", lambda path: whole)
    load_state(trainer)
    assert trainer.epoch == 2 and trainer.best["epoch"] == 1


def test_a_damaged_moving_average_or_scaler_is_refused(data, tmp_path):
    trainer = trainer_for(data, tmp_path, OPTIM__EMA=0.9, TRAINING__PRECISION="fp16")
    trainer.save_latest()
    whole = torch.load(trainer.latest, weights_only=True)
    for part, change in (
        *(("moving average", {"averaged": value}) for value in ("x", torch.zeros(3))),
        *(("moving average", {"model": value}) for value in ({}, 3)),
        ("scaler", {"scaler": {"scale": 1.0}}),
        ("scaler", {"scaler": {**whole["training"]["scaler"], "x": 1.0}}),
    ):
        torch.save({**whole, "training": {**whole["training"], **change}}, trainer.latest)
        with pytest.raises(InputError, match=f"the {part} of its training state"):
            load_state(trainer)


LARGE = {"TRAINING__WORKERS": 10**5, "TRAINING__TRAIN_PS": 99_999_992, "MODEL__WIDTH_STEP": 4096}


@pytest.mark.parametrize("key", LARGE)
def test_what_the_memory_does_not_hold_is_refused_first(data, tmp_path, key):
    with pytest.raises(InputError, match=r"would take about [\d,.]+ GB of memory; [\d,.]+ GB are"):
        trainer_for(data, tmp_path, **{key: LARGE[key]})
