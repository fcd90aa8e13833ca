"""The training loop, one for all tasks.

A task's train.py calls `main` with what is special about it: recipe, loss and data. Read on from
there: `Trainer` builds data, model and optimizer, `Trainer.run` goes through the epochs, and
`Trainer.step` is one step of the optimizer.

Every random choice of the data is drawn from (seed, epoch, position), never from a global state; a
run that is killed and resumed therefore sees what it would have seen, and on the CPU ends with the
same weights, bit for bit.
"""

import argparse
import math
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Dataset
from yacs.config import CfgNode

from dgunet.base.errors import InputError
from dgunet.data.augmentation import mixup
from dgunet.data.loading import Batches
from dgunet.data.sampler import EpochBatchSampler
from dgunet.inference.memory import keep_freed_memory
from dgunet.model.checkpoint import load_weights, save_checkpoint
from dgunet.model.registry import build_model
from dgunet.training.configuration import changes, load_config, model_sizes, plain
from dgunet.training.devices import Devices
from dgunet.training.log import Progress, RunLog
from dgunet.training.schedule import (
    Clock,
    build_scheduler,
    highest_and_lowest_rate,
    validation_batches,
)
from dgunet.training.signals import STOPPED, Stop, outliving

AUTOCAST = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# The attributes of a `Trainer` that say where a run stands.
POSITION = ("epoch", "batch", "validated", "psnr", "best", "loss_sum", "samples_done", "skipped")
STATE = {*POSITION, "optimizer", "scaler", "random", "samples", "config"}


def last_stage(model: nn.Module, images: Tensor, _config: CfgNode) -> Tensor:
    """Return the image of the model's last stage."""
    return model(images)[0]


@dataclass
class Task:
    """What is special about training a task.

    Attributes:
        name: the registry's name.
        recipe: dotted configuration keys and the published values that the YAML files do not hold.
        loss: (stage images, target) → the loss, a mean over the samples.
        training_data, validation_data: configuration → data set (see `dgunet.data.crops`); the
            latter may give None. A training set with a method `loader(sampler, device)` makes its
            batches itself; its `notes`, lines of text, are logged. A validation set may say which
            `batch_size` it can be read in.
        paper: (epochs, images an epoch, batch size) of the published training, or a function of the
            configuration that returns them.
        prepare: (model, configuration, training data, whether the model is fresh) changes the model
            before training; it is not fresh if it has weights of a file, or is about to get some.
        restore: (model, degraded images, configuration) → restored images, in validation.
        checks: what `load_config` checks otherwise for this task.
        shortcuts: command-line option → the key that it sets, such as "--minutes".
    """

    name: str
    recipe: Mapping[str, object]
    loss: Callable[[Sequence[Tensor], Tensor], Tensor]
    training_data: Callable[[CfgNode], Dataset]
    validation_data: Callable[[CfgNode], Dataset | None]
    paper: tuple[int, int, int] | Callable[[CfgNode], tuple[int, int, int]]
    prepare: Callable[[nn.Module, CfgNode, Dataset, bool], None] | None = None
    restore: Callable[[nn.Module, Tensor, CfgNode], Tensor] = last_stage
    checks: Mapping[str, tuple[Callable, str]] = field(default_factory=dict)
    shortcuts: Mapping[str, str] = field(default_factory=dict)


def main(task: Task, folder: str | os.PathLike, description: str | None = None) -> None:
    """Run a train.py: `--config FILE` (the task's training.yml) and `--opts KEY VALUE …`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=Path(folder) / "training.yml", help="YAML file")
    parser.add_argument(
        "--opts", nargs="*", action="extend", default=[], metavar="KEY VALUE", help="override keys"
    )
    for option, key in task.shortcuts.items():
        parser.add_argument(option, dest=key, metavar="N", help=f"--opts {key} N")
    arguments = parser.parse_args()
    given = {key: getattr(arguments, key) for key in task.shortcuts.values()}
    opts = [word for key, value in given.items() if value is not None for word in (key, value)]
    config = load_config(arguments.config, opts + arguments.opts, task.recipe, task.checks)
    config.MODEL.MODE = config.MODEL.MODE or task.name
    keep_freed_memory()
    trainer = Trainer(task, config)
    trainer.run()
    trainer.devices.close()


class Trainer:
    """One training run: its model, data, optimizer and where it stands."""

    def __init__(self, task: Task, config: CfgNode):
        self.task, self.config = task, config
        self.clock = Clock(config.TRAINING.MINUTES, config.TRAINING.VAL_TIMES)
        save_dir = Path(config.TRAINING.SAVE_DIR)
        self.folder = save_dir / config.MODEL.MODE / "models" / config.MODEL.SESSION
        self.latest = self.folder / "model_latest.pth"
        if self.latest.exists() and not config.TRAINING.RESUME:
            raise InputError(
                f"{self.latest} holds a run: TRAINING.RESUME True goes on with it, "
                "another MODEL.SESSION starts beside it"
            )
        self.devices = Devices(config.GPU)
        random.seed(config.SEED)
        torch.manual_seed(config.SEED)
        self.build_data()
        self.build_model()
        self.begin_epoch(1)
        self.best = {"epoch": 0, "psnr": -float("inf")}
        self.stop = Stop()  # signals to this process
        self.stopping = False  # whether any process was asked
        self.log = RunLog(self.folder, self.devices.main, config.VERBOSE)
        if config.TRAINING.RESUME:
            self.resume()
        if not self.devices.agree(self.sampler.samples, self.steps_done):
            raise InputError(
                f"process {self.devices.rank} has other data or another {self.latest} than the "
                "rest: several machines need a file system that they share"
            )

    def build_data(self) -> None:
        config, devices = self.config, self.devices
        self.training_data = self.task.training_data(config)
        self.validation_data = self.task.validation_data(config)
        self.sampler = EpochBatchSampler(
            len(self.training_data),
            config.OPTIM.BATCH_SIZE,
            config.SEED,
            rank=devices.rank,
            world_size=devices.world_size,
            repeats=config.DATA.REPEATS,
        )
        settings = {
            "num_workers": config.TRAINING.WORKERS,
            "pin_memory": devices.device.type == "cuda",
            "generator": torch.Generator().manual_seed(config.SEED),
            "worker_init_fn": outliving(),
        }
        if hasattr(self.training_data, "loader"):
            self.loader = self.training_data.loader(self.sampler, devices.device)
        else:
            self.loader = Batches(
                self.training_data,
                batch_sampler=self.sampler,
                persistent_workers=config.TRAINING.WORKERS > 0,
                **settings,
            )
        if self.validation_data is not None:
            share = range(devices.rank, len(self.validation_data), devices.world_size)
            size = config.OPTIM.BATCH_SIZE // config.OPTIM.ACCUMULATE // devices.processors
            size = getattr(self.validation_data, "batch_size", size)
            self.validation = Batches(
                self.validation_data, batch_size=max(1, size), sampler=list(share), **settings
            )

    def build_model(self) -> None:
        config, optim = self.config, self.config.OPTIM
        sizes = model_sizes(config, self.task.name)
        self.model = build_model(self.task.name, config.MODEL.NAME, sizes)
        if config.MODEL.ZERO_IMAGE_CONVOLUTIONS:
            self.model.zero_image_convolutions()
        if config.MODEL.WEIGHTS:
            load_weights(self.model, config.MODEL.WEIGHTS)
        if self.task.prepare:
            fresh = not config.MODEL.WEIGHTS and not self.latest.exists()
            self.task.prepare(self.model, config, self.training_data, fresh)
        self.memory_format = (
            torch.channels_last if config.TRAINING.CHANNELS_LAST else torch.contiguous_format
        )
        self.model.to(self.devices.device, memory_format=self.memory_format)
        self.model.checkpoint_stages = config.TRAINING.CHECKPOINT_STAGES
        self.average = None
        if optim.EMA:
            self.average = AveragedModel(self.model, multi_avg_fn=self.moving_average)
        self.network = self.devices.wrap(self.model)
        if config.TRAINING.COMPILE:
            self.network = torch.compile(self.network)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(),
            lr=highest_and_lowest_rate(optim)[0],
            weight_decay=optim.WEIGHT_DECAY,
            fused=optim.FUSED or None,
        )
        self.scheduler = build_scheduler(self.optimizer, config)
        self.scaler = torch.amp.GradScaler(
            self.devices.device.type, enabled=config.TRAINING.PRECISION == "fp16"
        )

    def run(self) -> None:
        """Train from where the run stands to the last epoch, or for the minutes left."""
        self.log.start(self)
        try:
            with self.stop:
                if self.clock.minutes:
                    self.start_clock()
                while self.epoch <= self.last_epoch and not self.clock.over:
                    self.run_epoch()
        finally:
            self.loader = None  # ends its workers
            self.log.close()
        if self.best["epoch"]:
            self.log.line(f"best: epoch {self.best['epoch']}, PSNR {self.best['psnr']:.2f} dB")

    def begin_epoch(self, epoch: int) -> None:
        self.epoch, self.batch = epoch, 0  # how many of its batches are done
        self.validated = 0  # after which of them
        self.loss_sum = self.samples_done = self.skipped = 0.0  # over all processes
        self.psnr: float | None = None  # of the last validation

    def run_epoch(self) -> None:
        self.network.train()
        self.sampler.set_position(self.epoch, self.batch)
        saved = time.monotonic()
        with self.log.progress(self) as bar:
            self.validate_if_due(bar)  # a run that was stopped in it comes back here
            for samples in self.loader:
                bar.advance(self.step(samples))
                self.stop_if_asked()
                self.validate_if_due(bar)
                if self.clock.over:
                    break
                if time.monotonic() - saved > 60 * self.config.TRAINING.SAVE_MINUTES:
                    self.save_latest()
                    saved = time.monotonic()
        self.log.epoch(self, self.loss_sum / self.samples_done, int(self.skipped), bar.rate)
        if self.batch < self.sampler.batches:
            return self.save_latest()
        if self.psnr is not None and self.config.TRAINING.KEEP_EPOCHS:
            self.save(self.folder / f"model_epoch_{self.epoch}.pth", psnr=self.psnr)
        self.scheduler.step()
        self.begin_epoch(self.epoch + 1)
        self.save_latest()

    def step(self, samples: dict) -> float:
        """Take one step of the optimizer on this process's share of a batch, and return the mean
        loss of the joint batch.

        The share may be worked off in parts (OPTIM.ACCUMULATE). Each loss is a mean over samples,
        so it counts by its samples' part of the joint batch: every sample weighs the same, however
        the batch is divided over parts and processes.
        """
        config, devices = self.config, self.devices
        if self.clock.minutes:
            for group in self.optimizer.param_groups:
                group["lr"] = self.clock.rate(config.OPTIM)
        degraded, target = self.images(samples)
        if 0 <= config.DATA.MIXUP_AFTER < self.epoch:
            rng = np.random.default_rng([config.SEED, self.epoch, self.batch, devices.rank, 2])
            degraded, target = mixup(degraded, target, rng)
        counts = bool(samples["weight"].any())  # not so for a process without a share
        joint = self.sampler.joint_size(self.batch)
        parts = [part.chunk(config.OPTIM.ACCUMULATE) for part in (degraded, target)]
        loss = torch.zeros((), device=devices.device)
        for number, (part, part_target) in enumerate(zip(*parts, strict=True), 1):
            weight = counts * len(part) / joint
            last = number == len(parts[0])
            with nullcontext() if last else devices.accumulating(self.network):
                with self.autocast():
                    stages = self.network(part)
                part_loss = self.task.loss(stages, part_target) * weight
                # Over processes gradients are averaged, and are to be summed.
                self.scaler.scale(part_loss * devices.world_size).backward()
            loss += part_loss.detach()
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if config.OPTIM.CLIP_GRAD:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), config.OPTIM.CLIP_GRAD, norm)
        value, skipped, asked, elapsed = devices.sum(
            loss.item(),
            float(samples["skipped"].sum()),
            bool(self.stop),
            self.clock.now * devices.main,  # one clock, so that all processes end together
        )
        # fp16 overflows now and then: the scaler leaves out such a step.
        finite = math.isfinite(value) and (self.scaler.is_enabled() or math.isfinite(norm))
        if not finite:
            kept = f"; {self.latest} is from before" if self.latest.exists() else ""
            raise InputError(
                f"epoch {self.epoch}, step {self.batch + 1}: the loss is {value:g} and its "
                f"gradient's norm {norm:g}, in a batch of {', '.join(samples['name'])}{kept}"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.batch += 1
        self.loss_sum += value * joint
        self.samples_done += joint
        self.skipped += skipped
        self.stopping, self.clock.elapsed = asked > 0, elapsed
        return value

    def images(self, samples: dict) -> tuple[Tensor, Tensor]:
        """Return the degraded and target images on the device; grey ones as three equal channels,
        where the network takes three."""
        degraded, target = (
            samples[key]
            .expand(-1, self.model.channels, -1, -1)
            .to(self.devices.device, non_blocking=True, memory_format=self.memory_format)
            for key in ("degraded", "target")
        )
        return degraded, target

    @torch.no_grad()
    def moving_average(self, averages: list[Tensor], weights: list[Tensor], count: Tensor) -> None:
        """Update the exponential moving average, which forgets faster in its first steps."""
        decay = min(self.config.OPTIM.EMA, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averages, weights, 1 - decay)

    def autocast(self):
        dtype = AUTOCAST[self.config.TRAINING.PRECISION]
        return torch.autocast(self.devices.device.type, dtype=dtype, enabled=dtype is not None)

    @property
    def last_epoch(self) -> float:
        return math.inf if self.clock.minutes else self.config.OPTIM.NUM_EPOCHS

    def start_clock(self) -> None:
        """Validate what a run of minutes starts from; after that its time for training begins."""
        clock, fresh = self.clock, self.clock.validations < 0
        if fresh and self.validation_data is not None:
            self.validate()
        [clock.elapsed] = self.devices.sum(clock.now * self.devices.main)
        if fresh:
            clock.validations, clock.began = 0, clock.elapsed
        # Fewer than before, if the minutes are more now.
        clock.validations = min(clock.validations, clock.due)

    @property
    def steps_done(self) -> int:
        return (self.epoch - 1) * self.sampler.batches + self.batch

    @property
    def samples_seen(self) -> int:
        """Samples of all steps done, over all processes."""
        done = min(self.batch * self.sampler.batch_size, self.sampler.samples)
        return (self.epoch - 1) * self.sampler.samples + done

    @property
    def weights(self) -> nn.Module:
        """The model that is validated and saved: the moving average where there is one."""
        return self.model if self.average is None else self.average.module

    def validate_if_due(self, bar: Progress) -> None:
        if self.validation_data is None:
            return
        number = self.clock.validations
        if self.clock.minutes:
            number = self.clock.due
            due = number > self.clock.validations
        else:
            batches = validation_batches(self.config, self.epoch, self.sampler.batches)
            due = self.batch in batches and self.validated < self.batch
        if due:
            self.validate()
            self.clock.validations = number
            bar.skip_time()

    @torch.no_grad()
    def validate(self) -> None:
        """Take the mean PSNR in dB of the last stage's images, clamped to [0,1], over the centre
        crops of the validation set; keep the weights if they are the best."""
        began = time.monotonic()
        model = self.weights.eval()
        total, count, shown = 0.0, 0, []
        for samples in self.validation:
            if self.stop:
                break
            degraded, target = self.images(samples)
            with self.autocast():
                restored = self.task.restore(model, degraded, self.config).float()
            if samples["target"].shape[1] == 1:
                restored = restored.mean(1, keepdim=True).expand_as(target)
            restored = restored.clamp(0, 1)
            errors = (restored - target).square().mean((1, 2, 3)).double().cpu()
            # An exact image, such as a white one, counts as 100 dB: infinity would hide the others.
            total += float((-10 * errors.clamp(min=1e-10).log10()).sum())
            count += len(errors)
            if not shown:
                shown = [degraded[:3].clamp(0, 1), restored[:3], target[:3]]
        seconds = (time.monotonic() - began) * self.devices.main
        total, count, asked, seconds = self.devices.sum(total, count, bool(self.stop), seconds)
        self.network.train()
        self.stopping = asked > 0
        self.stop_if_asked()
        self.psnr, self.validated = total / count, self.batch
        self.clock.validation_seconds = seconds
        self.log.validation(self, shown)
        if self.psnr > self.best["psnr"]:
            self.best = {"epoch": self.epoch, "psnr": self.psnr}
            self.save(self.folder / "model_best.pth", psnr=self.psnr)

    def save(self, path: Path, **extra) -> None:
        if self.devices.main:
            if self.clock.minutes:
                extra |= {"seconds": self.clock.now, "samples": self.samples_seen}
            save_checkpoint(path, self.weights, epoch=self.epoch, **extra)

    def save_latest(self) -> None:
        """Save the whole state, from which a run goes on as if it had never stopped."""
        if not self.devices.main:
            return
        state = {name: getattr(self, name) for name in POSITION}
        state |= {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": {"python": random.getstate(), "torch": torch.get_rng_state()},
            "samples": self.sampler.samples,
            "config": plain(self.config),
        }
        if self.clock.minutes:
            state |= self.clock.state()
        if self.devices.device.type == "cuda":
            state["random"]["cuda"] = torch.cuda.get_rng_state(self.devices.device)
        if self.average is not None:
            state["model"] = self.model.state_dict()
            state["averaged"] = self.average.n_averaged
        done = self.epoch - (self.batch == 0)
        save_checkpoint(self.latest, self.weights, epoch=done, training=state)

    def resume(self) -> None:
        """Go on from `model_latest.pth`, if there is one. Where the configuration has changed
        since, the new one holds."""
        if not self.latest.exists():
            return self.log.line(f"nothing to resume from in {self.folder}: starting anew")
        fixed = {n: p.clone() for n, p in self.model.named_parameters() if not p.requires_grad}
        state = load_weights(self.weights, self.latest).get("training")
        if state is None:
            raise InputError(f"{self.latest}: holds weights only, no state to resume from")
        loaded = dict(self.weights.named_parameters())
        if other := [name for name, value in fixed.items() if not loaded[name].equal(value)]:
            raise InputError(f"{self.latest}: holds another {', '.join(other)} than is fixed now")
        if self.average is not None:
            if "model" not in state:
                raise InputError(f"{self.latest}: holds no moving average, but OPTIM.EMA is set")
            self.model.load_state_dict(state["model"])
            self.average.n_averaged.copy_(state["averaged"])
        elif "model" in state:
            raise InputError(f"{self.latest}: holds a moving average, but OPTIM.EMA is 0")
        if missing := STATE - state.keys():
            raise InputError(f"{self.latest}: its training state lacks {', '.join(missing)}")
        for name in POSITION:
            setattr(self, name, state[name])
        self.clock.load(state)
        groups = self.optimizer.state_dict()["param_groups"]  # with the configuration's settings
        self.optimizer.load_state_dict({**state["optimizer"], "param_groups": groups})
        with warnings.catch_warnings():  # about stepping the scheduler before the optimizer
            warnings.simplefilter("ignore")
            for _ in range(1, self.epoch):
                self.scheduler.step()
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        random.setstate(state["random"]["python"])
        torch.set_rng_state(state["random"]["torch"])
        if "cuda" in state["random"] and self.devices.device.type == "cuda":
            torch.cuda.set_rng_state(state["random"]["cuda"], self.devices.device)

        place = f"epoch {self.epoch}" + (f", after batch {self.batch}" if self.batch else "")
        if self.clock.minutes:
            place += f", {self.clock.now / 60:.1f} of {self.clock.minutes:g} minutes used"
        if self.epoch > self.last_epoch:
            place = "its end"
        self.log.line(f"resumed from {self.latest} at {place}")
        changed = [
            change
            for change in changes(state["config"], self.config)
            if not change.startswith(("TRAINING.RESUME ", "VERBOSE "))
        ]
        if changed:
            self.log.line(f"changed since: {', '.join(changed)}")
        moved = any(change.startswith(("OPTIM.BATCH_SIZE ", "SEED ")) for change in changed)
        if self.batch and (moved or state["samples"] != self.sampler.samples):
            self.log.line(f"its batches are others now: epoch {self.epoch} begins again")
            self.begin_epoch(self.epoch)

    def stop_if_asked(self) -> None:
        """After a signal to any of the processes, save and end all of them."""
        if not self.stopping and (not self.stop or self.devices.distributed):
            return
        number = self.stop.number or signal.SIGTERM
        self.save_latest()
        self.log.line(
            f"{STOPPED[number]}: saved epoch {self.epoch} after batch {self.batch}; "
            "TRAINING.RESUME True goes on from there"
        )
        self.devices.close()
        sys.exit(128 + number)
