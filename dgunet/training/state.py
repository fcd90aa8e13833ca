"""The state of a run in `model_latest.pth`, from which it goes on as if it had never stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgunet.base.errors import InputError
from dgunet.model.checkpoint import fitting_state, read_checkpoint, save_checkpoint
from dgunet.model.published_format import adam_from_published
from dgunet.training.configuration import changes, plain

if TYPE_CHECKING:
    from dgunet.training.trainer import Trainer

# The attributes of a `Trainer` that say where a run stands.
POSITION = (
    "epochs", "epoch", "batch", "validated", "psnr", "best", "loss_sum", "samples_done", "skipped",
)  # fmt: skip
LARGEST = 2**63  # of a number


def _fits(value: Any, like: Any) -> bool:
    """Tell whether a value is like another: dicts of the same names, finite tensors of one type and
    shape, numbers of one type from 0 to `LARGEST`."""
    if isinstance(like, Mapping):
        same = isinstance(value, dict) and value.keys() == like.keys()
        return same and all(_fits(value[name], like[name]) for name in like)
    if isinstance(like, Tensor):
        same = isinstance(value, Tensor) and (value.dtype, value.shape) == (like.dtype, like.shape)
        return same and bool(value.isfinite().all())
    return type(value) is type(like) and 0 <= value < LARGEST


def save_state(run: Trainer) -> None:
    """Write `model_latest.pth`: the weights as in every checkpoint, and the state beside them."""
    epoch = run.epoch - (run.batch == 0)
    save_checkpoint(run.latest, run.weights, epoch=epoch, training=_state(run))


def _state(run: Trainer) -> dict:
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
        state["averaged"] = torch.tensor(run.averaged)
    return state


def _from_published(run: Trainer, checkpoint: Mapping) -> dict:
    """Return the state of a run that goes on after the last epoch of the published training, of
    which `checkpoint` is the `model_latest.pth`."""
    try:
        adam = adam_from_published(run.model, checkpoint["optimizer"])
        state = _state(run) | {"epoch": checkpoint["epoch"] + 1, "optimizer": {"state": adam}}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{run.latest}: the optimizer of its training state does not fit the run ({error})"
        ) from error
    state.pop("model", None)  # the moving average is not in such a file
    return state


def load_state(run: Trainer) -> None:
    """Go on from `model_latest.pth`, if there is one. Where the configuration has changed since,
    the new one holds.

    Raises:
        InputError: the file is of another network, has no state, or one that does not fit.
    """
    if not run.latest.exists():
        return run.log.line(f"nothing to resume from in {run.folder}: starting anew")
    state = _checked(run)
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
    if state["random"].get("cuda") is not None and run.devices.device.type == "cuda":
        torch.cuda.set_rng_state(state["random"]["cuda"], run.devices.device)
    _tell(run, state)


def _checked(run: Trainer) -> dict:
    """Return the state once all of it, the weights too, is found to fit the model and the
    configuration; then load the weights, and the moving average where there is one."""
    checkpoint = read_checkpoint(run.latest)
    weights = fitting_state(run.weights, checkpoint, run.latest)
    state = checkpoint.get("training")
    if state is None and {"epoch", "optimizer"} <= checkpoint.keys():
        state = _from_published(run, checkpoint)
    if not isinstance(state, dict):
        raise InputError(f"{run.latest}: holds weights only, no state to resume from")
    fixed = [(n, p) for n, p in run.model.named_parameters() if not p.requires_grad]
    if other := [name for name, value in fixed if not weights[name].equal(value.cpu())]:
        raise InputError(f"{run.latest}: holds another {', '.join(other)} than is fixed now")
    if (run.average is None) == ("model" in state):
        found, given = ("a", "0") if "model" in state else ("no", "set")
        raise InputError(f"{run.latest}: holds {found} moving average, but OPTIM.EMA is {given}")
    if missing := _state(run).keys() - state.keys():
        raise InputError(f"{run.latest}: its training state lacks {', '.join(sorted(missing))}")
    if damaged := _damaged(run, state):
        raise InputError(f"{run.latest}: the {damaged} of its training state does not fit the run")
    run.weights.load_state_dict(weights)
    if run.average is not None:
        run.model.load_state_dict(state["model"])
        run.averaged = int(state["averaged"])
    return state


def _damaged(run: Trainer, state: dict) -> str:
    """Return the name of a part of the state that cannot be gone on from; nothing if all can."""
    like = _state(run)
    moments = {
        number: {"step": torch.zeros(()), "exp_avg": value, "exp_avg_sq": value}
        for number, value in enumerate(run.model.parameters())
        if value.requires_grad
    }

    def random_fits(random: dict) -> bool:
        torch.Generator().set_state(random["torch"])
        found, expected = random.get("cuda"), like["random"].get("cuda")
        return found is None or expected is None or _fits(found, expected)

    def moments_fit(optimizer: dict) -> bool:
        # There are none before the first step; a scaler may leave out several.
        early = state["scaler"] or (state["epoch"], state["batch"]) == (1, 0)
        return bool(early and optimizer["state"] == {}) or _fits(optimizer["state"], moments)

    checks: dict[str, Callable[[Any], bool]] = {  # of what may differ from what the run has now
        "psnr": lambda v: v is None or isinstance(v, float),  # NaN, if a validation overflowed
        "best": lambda v: _fits({**v, "psnr": 0.0}, {"epoch": 0, "psnr": 0.0}) and v["psnr"] <= 100,
        "samples": lambda v: _fits(v, 1) and v > 0,
        "random": random_fits,
        "optimizer": moments_fit,
        "scaler": lambda v: v == {} or _fits(v, torch.amp.GradScaler("cpu").state_dict()),
        # Tensors, which JSON does not hold, cannot be compared with settings.
        "config": lambda v: _fits(v["TRAINING"]["MINUTES"], 0.0) and bool(json.dumps(v)),
    }
    for name, expected in like.items():
        try:
            good = checks[name](state[name]) if name in checks else _fits(state[name], expected)
        except Exception:  # a damaged part can raise nearly anything
            good = False
        if not good:
            return "moving average" if name in ("model", "averaged") else name
    if not 0 < state["epoch"] <= max(1, state["epochs"] + 1):
        return "epoch"
    return "batch" if state["batch"] > state["samples"] else ""


def _tell(run: Trainer, state: dict) -> None:
    """Log where the run goes on and what has changed. An epoch whose batches have, begins again."""
    place = f"epoch {run.epoch}" + (f", after batch {run.batch}" if run.batch else "")
    if run.minutes:
        place += f", {run.seconds / 60:.1f} of {run.minutes:g} minutes used"
    if run.epochs and run.ended:
        place = "its end"
    run.log.line(f"resumed from {run.latest} at {place}")
    found, unimportant = changes(state["config"], run.config), ("TRAINING.RESUME ", "VERBOSE ")
    changed = [change for change in found if not change.startswith(unimportant)]
    if changed:
        run.log.line(f"changed since: {', '.join(changed)}")
    others = any(change.startswith(("OPTIM.BATCH_SIZE ", "SEED ")) for change in changed)
    if run.batch and (others or state["samples"] != run.sampler.samples):
        run.log.line(f"its batches are others now: epoch {run.epoch} begins again")
        run.begin_epoch(run.epoch)
        run.validated = 0
