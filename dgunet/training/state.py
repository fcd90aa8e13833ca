"""The state of a run in `model_latest.pth`, from which it goes on as if it had never stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dgunet.base.errors import InputError
from dgunet.model.checkpoint import load_weights, save_checkpoint
from dgunet.training.configuration import changes, plain

if TYPE_CHECKING:
    from dgunet.training.trainer import Trainer

# The attributes of a `Trainer` that say where a run stands.
POSITION = (
    "epochs", "epoch", "batch", "validated", "psnr", "best", "loss_sum", "samples_done", "skipped",
)  # fmt: skip
STATE = {*POSITION, "optimizer", "scaler", "random", "samples", "seconds", "config"}


def save_state(run: Trainer) -> None:
    """Write `model_latest.pth`: the weights as in every checkpoint, and the state beside them."""
    state = {name: getattr(run, name) for name in POSITION}
    state |= {
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "random": {"torch": torch.get_rng_state()},
        "samples": run.sampler.samples,
        "seconds": run.seconds,
        "config": plain(run.config),
    }
    if run.devices.device.type == "cuda":
        state["random"]["cuda"] = torch.cuda.get_rng_state(run.devices.device)
    if run.average is not None:
        state["model"] = run.model.state_dict()
        state["averaged"] = run.average.n_averaged
    epoch = run.epoch - (run.batch == 0)
    save_checkpoint(run.latest, run.weights, epoch=epoch, training=state)


def load_state(run: Trainer) -> None:
    """Go on from `model_latest.pth`, if there is one. Where the configuration has changed since,
    the new one holds.

    Raises:
        InputError: the file is of another network, has no state, or one that does not fit.
    """
    if not run.latest.exists():
        return run.log.line(f"nothing to resume from in {run.folder}: starting anew")
    state = _load_weights(run)
    for name in POSITION:
        setattr(run, name, state[name])
    run.spent = state["seconds"]
    before = state["config"]["TRAINING"]["MINUTES"]
    if run.minutes and not before:
        raise InputError(
            f"{run.latest}: is of a run by epochs, but TRAINING.MINUTES is {run.minutes:g}; "
            "expected 0"
        )
    epochs = float(run.config.OPTIM.NUM_EPOCHS)
    run.set_length(run.epochs * run.minutes / before if run.minutes else epochs)
    groups = run.optimizer.state_dict()["param_groups"]  # with the configuration's settings
    for group in groups:
        group["lr"] = run.rate
    run.optimizer.load_state_dict({**state["optimizer"], "param_groups": groups})
    if state["scaler"] and run.scaler.is_enabled():
        run.scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(state["random"]["torch"])
    if "cuda" in state["random"] and run.devices.device.type == "cuda":
        torch.cuda.set_rng_state(state["random"]["cuda"], run.devices.device)
    _tell(run, state)


def _load_weights(run: Trainer) -> dict:
    """Load the weights, and the moving average where there is one; return the state."""
    fixed = {n: p.clone() for n, p in run.model.named_parameters() if not p.requires_grad}
    state = load_weights(run.weights, run.latest).get("training")
    if state is None:
        raise InputError(f"{run.latest}: holds weights only, no state to resume from")
    if missing := STATE - state.keys():
        raise InputError(f"{run.latest}: its training state lacks {', '.join(sorted(missing))}")
    loaded = dict(run.weights.named_parameters())
    if other := [name for name, value in fixed.items() if not loaded[name].equal(value)]:
        raise InputError(f"{run.latest}: holds another {', '.join(other)} than is fixed now")
    if run.average is not None:
        if "model" not in state:
            raise InputError(f"{run.latest}: holds no moving average, but OPTIM.EMA is set")
        run.model.load_state_dict(state["model"])
        run.average.n_averaged.copy_(state["averaged"])
    elif "model" in state:
        raise InputError(f"{run.latest}: holds a moving average, but OPTIM.EMA is 0")
    return state


def _tell(run: Trainer, state: dict) -> None:
    """Log where the run goes on and what has changed. An epoch whose batches have, begins again."""
    place = f"epoch {run.epoch}" + (f", after batch {run.batch}" if run.batch else "")
    if run.minutes:
        place += f", {run.seconds / 60:.1f} of {run.minutes:g} minutes used"
    if run.epochs and run.ended:
        place = "its end"
    run.log.line(f"resumed from {run.latest} at {place}")
    changed = [
        change
        for change in changes(state["config"], run.config)
        if not change.startswith(("TRAINING.RESUME ", "VERBOSE "))
    ]
    if changed:
        run.log.line(f"changed since: {', '.join(changed)}")
    others = any(change.startswith(("OPTIM.BATCH_SIZE ", "SEED ")) for change in changed)
    if run.batch and (others or state["samples"] != run.sampler.samples):
        run.log.line(f"its batches are others now: epoch {run.epoch} begins again")
        run.begin_epoch(run.epoch)
        run.validated = 0
