"""The training loop, one for all tasks.

A task's train.py calls `main` with what is special about it: recipe, loss and data. Then come the
configuration, budget, `Trainer.run`, which goes through the epochs, and `Trainer.step`, which is one
step of the optimizer.

Every random choice of the data is drawn from (seed, epoch, position), never from a global state; a
run that is killed and resumed therefore sees what it would have seen, and on the CPU ends with the
same weights, bit for bit.
"""

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset
from warmup_scheduler import GradualWarmupScheduler
from yacs.config import CfgNode

from restoration.checkpoint import load_weights, read_checkpoint, save_checkpoint
from restoration.config import load_config, model_sizes
from restoration.data import EpochBatchSampler, mixup
from restoration.distributed import Devices
from restoration.errors import InputError
from restoration.runlog import RunLog
from restoration.tasks import build_model

AUTOCAST = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
TERMINATED = 143  # exit code after SIGTERM, as shells give it


@dataclass
class Task:
    """What is special about training a task.

    Attributes:
        name: the registry's name.
        recipe: dotted configuration keys and the published values that the YAML files do not hold.
        loss: (stage images, target) → the loss, a mean over the samples.
        training_data, validation_data: configuration → data set (see `restoration.data`); the
            latter may give None.
        paper: (epochs, images an epoch, batch size) of the published training.
    """

    name: str
    recipe: Mapping[str, object]
    loss: Callable[[Sequence[Tensor], Tensor], Tensor]
    training_data: Callable[[CfgNode], Dataset]
    validation_data: Callable[[CfgNode], Dataset | None]
    paper: tuple[int, int, int]


def main(task: Task, folder: str | os.PathLike, description: str | None = None) -> None:
    """Run a train.py: `--config FILE` (the task's training.yml) and `--opts KEY VALUE …`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=Path(folder) / "training.yml", help="YAML file")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="override keys")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.opts, task.recipe)
    config.MODEL.MODE = config.MODEL.MODE or task.name
    trainer = Trainer(task, config)
    try:
        trainer.run()
    finally:
        trainer.devices.close()


class Trainer:
    """One training run: its model, data, optimizer and where it stands."""

    def __init__(self, task: Task, config: CfgNode):
        self.task, self.config = task, config
        self.devices = Devices(config.GPU)
        save_dir = Path(config.TRAINING.SAVE_DIR)
        self.folder = save_dir / config.MODEL.MODE / "models" / config.MODEL.SESSION
        self.latest = self.folder / "model_latest.pth"
        if self.latest.exists() and not config.TRAINING.RESUME:
            raise InputError(
                f"{self.latest} holds a run: TRAINING.RESUME True goes on with it, "
                "another MODEL.SESSION starts beside it"
            )
        random.seed(config.SEED)
        torch.manual_seed(config.SEED)
        self.build_data()
        self.build_model()
        self.begin_epoch(1)
        self.best = {"epoch": 0, "psnr": -float("inf")}
        self.terminated = False
        self.log = RunLog(self.folder, self.devices.main, config.VERBOSE)
        if config.TRAINING.RESUME:
            self.resume()

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
            "worker_init_fn": outlive_signals,
        }
        self.loader = DataLoader(
            self.training_data,
            batch_sampler=self.sampler,
            persistent_workers=config.TRAINING.WORKERS > 0,
            **settings,
        )
        if self.validation_data is not None:
            share = range(devices.rank, len(self.validation_data), devices.world_size)
            size = max(1, config.OPTIM.BATCH_SIZE // config.OPTIM.ACCUMULATE // devices.world_size)
            self.validation = DataLoader(
                self.validation_data, batch_size=size, sampler=list(share), **settings
            )

    def build_model(self) -> None:
        config, optim = self.config, self.config.OPTIM
        sizes = model_sizes(config)
        if self.task.name == "Compressive_Sensing":
            sizes["cs_ratio"] = config.MODEL.CS_RATIO
        self.model = build_model(self.task.name, config.MODEL.NAME, sizes)
        if config.MODEL.ZERO_IMAGE_CONVOLUTIONS:
            self.model.zero_image_convolutions()
        if config.MODEL.WEIGHTS:
            load_weights(self.model, config.MODEL.WEIGHTS)
        self.memory_format = (
            torch.channels_last if config.TRAINING.CHANNELS_LAST else torch.contiguous_format
        )
        self.model.to(self.devices.device, memory_format=self.memory_format)
        self.average = None
        if optim.EMA:
            self.average = AveragedModel(self.model, avg_fn=self.moving_average)
        self.network = self.devices.wrap(self.model)
        if config.TRAINING.COMPILE:
            self.network = torch.compile(self.network)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=optim.LR_INITIAL, weight_decay=optim.WEIGHT_DECAY
        )
        warmup = optim.WARMUP_EPOCHS
        length = max(1, optim.NUM_EPOCHS - warmup) + optim.COSINE_EXTRA_EPOCHS
        cosine = CosineAnnealingLR(self.optimizer, length, eta_min=optim.LR_MIN)
        self.scheduler = cosine
        if warmup:
            self.scheduler = GradualWarmupScheduler(self.optimizer, 1, warmup, cosine)
            self.scheduler.step()
        self.scaler = torch.amp.GradScaler(
            self.devices.device.type, enabled=config.TRAINING.PRECISION == "fp16"
        )

    def run(self) -> None:
        """Train from where the run stands to the last epoch."""
        self.log.start(self)
        previous = signal.signal(signal.SIGTERM, self._terminate)
        try:
            while self.epoch <= self.config.OPTIM.NUM_EPOCHS:
                self.run_epoch()
        finally:
            signal.signal(signal.SIGTERM, previous)
            self.log.close()
        if self.best["epoch"]:
            self.log.line(f"best: epoch {self.best['epoch']}, PSNR {self.best['psnr']:.2f} dB")

    def begin_epoch(self, epoch: int) -> None:
        self.epoch, self.batch = epoch, 0  # how many of its batches are done
        self.loss_sum = self.samples_done = self.skipped = 0.0  # on this process
        self.psnr: float | None = None  # of the last validation

    def run_epoch(self) -> None:
        self.network.train()
        self.sampler.set_position(self.epoch, self.batch)
        validate_after = self.validation_batches()
        saved = time.monotonic()
        with self.log.progress(self) as bar:
            for samples in self.loader:
                bar.advance(self.step(samples))
                if self.batch in validate_after and self.batch < self.sampler.batches:
                    self.validate()
                self.stop_if_terminated()
                if time.monotonic() - saved > 60 * self.config.TRAINING.SAVE_MINUTES:
                    self.save_latest()
                    saved = time.monotonic()
        if self.sampler.batches in validate_after:
            self.validate()
        loss, samples, skipped = self.devices.sum(self.loss_sum, self.samples_done, self.skipped)
        self.log.epoch(self, loss / max(samples, 1), int(skipped), bar.rate)
        if self.psnr is not None:
            self.save(self.folder / f"model_epoch_{self.epoch}.pth", psnr=self.psnr)
        self.scheduler.step()
        self.begin_epoch(self.epoch + 1)
        self.save_latest()
        self.stop_if_terminated()

    def step(self, samples: dict) -> float:
        """Take one step of the optimizer on this process's share of a batch, and return the mean
        loss of that share.

        The share may be worked off in parts (OPTIM.ACCUMULATE). Each loss is a mean over samples,
        so it counts by its samples' part of the joint batch: every sample weighs the same, however
        the batch is divided over parts and processes.
        """
        config = self.config
        degraded, target = (
            samples[key].to(
                self.devices.device, non_blocking=True, memory_format=self.memory_format
            )
            for key in ("degraded", "target")
        )
        if 0 <= config.DATA.MIXUP_AFTER < self.epoch:
            rng = np.random.default_rng([config.SEED, self.epoch, self.batch, self.devices.rank, 2])
            degraded, target = mixup(degraded, target, rng)
        real = int(samples["weight"].sum())  # 0 for a process without a share of this batch
        joint = self.sampler.joint_size(self.batch)
        parts = [part.chunk(config.OPTIM.ACCUMULATE, dim=0) for part in (degraded, target)]
        share_loss = 0.0
        for number, (part, part_target) in enumerate(zip(*parts, strict=True), 1):
            weight = (len(part) if real else 0) * self.devices.world_size / joint
            last = number == len(parts[0])
            with nullcontext() if last else self.devices.accumulating(self.network):
                with self.autocast():
                    stages = self.network(part)
                loss = self.task.loss(stages, part_target)
                self.scaler.scale(loss * weight).backward()
            share_loss += loss.detach() * len(part) / len(degraded)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters()])
        if config.OPTIM.CLIP_GRAD:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), config.OPTIM.CLIP_GRAD, norm)
        finite = share_loss if self.scaler.is_enabled() else share_loss + norm.to(share_loss)
        value = share_loss.item()
        if not torch.isfinite(finite):
            names = ", ".join(samples["name"])
            raise InputError(
                f"epoch {self.epoch}, step {self.batch + 1}: the loss is {value}, its gradient's "
                f"norm {norm.item()}; batch of {names}. The last state is in {self.latest}"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.batch += 1
        self.loss_sum += value * real
        self.samples_done += real
        self.skipped += float(samples["skipped"].sum())
        return value

    def moving_average(self, averaged: Tensor, current: Tensor, count: Tensor) -> Tensor:
        """Return the exponential moving average, with less memory in its first steps."""
        decay = ((1 + count) / (10 + count)).clamp(max=self.config.OPTIM.EMA)
        return torch.lerp(current, averaged, decay.to(averaged))

    def autocast(self):
        dtype = AUTOCAST[self.config.TRAINING.PRECISION]
        return torch.autocast(self.devices.device.type, dtype=dtype, enabled=dtype is not None)

    def validation_batches(self) -> set[int]:
        """Return after how many batches of this epoch to validate."""
        keys, last = self.config.TRAINING, self.sampler.batches
        if keys.VAL_EPOCHS:
            due = self.epoch in keys.VAL_EPOCHS or self.epoch > keys.VAL_ALWAYS_AFTER
        else:
            due = self.epoch % keys.VAL_AFTER_EVERY == 0
        if self.validation_data is None or not due:
            return set()
        every = last // keys.VAL_TIMES - 1
        if keys.VAL_TIMES == 1 or every < 1:
            return {last}
        return {every * number for number in range(1, keys.VAL_TIMES + 1)}

    @property
    def steps_done(self) -> int:
        return (self.epoch - 1) * self.sampler.batches + self.batch

    @property
    def weights(self) -> nn.Module:
        """The model that is validated and saved: the moving average where there is one."""
        return self.model if self.average is None else self.average.module

    @torch.no_grad()
    def validate(self) -> None:
        """Take the mean PSNR in dB of the last stage's images, clamped to [0,1], over the validation
        set's centre crops; keep the weights if they are the best."""
        model = self.weights.eval()
        total, count, shown = 0.0, 0, []
        for samples in self.validation:
            degraded, target = (
                samples[key].to(self.devices.device, memory_format=self.memory_format)
                for key in ("degraded", "target")
            )
            with self.autocast():
                restored = model(degraded)[0]
            restored = restored.float().clamp(0, 1)
            errors = (restored - target).square().mean((1, 2, 3)).double().cpu()
            total += float((-10 * errors.log10()).sum())
            count += len(errors)
            if not shown:
                shown = [degraded[:3].clamp(0, 1), restored[:3], target[:3]]
        total, count = self.devices.sum(total, count)
        self.psnr = total / count
        self.network.train()
        self.log.validation(self, shown)
        if self.psnr > self.best["psnr"]:
            self.best = {"epoch": self.epoch, "psnr": self.psnr}
            self.save(self.folder / "model_best.pth", psnr=self.psnr)

    def save(self, path: Path, **extra) -> None:
        if self.devices.main:
            save_checkpoint(path, self.weights, epoch=self.epoch, **extra)

    def save_latest(self) -> None:
        """Save the whole state, from which a run goes on as if it had never stopped. Only the main
        process does, without the others, so that it may do so at any time."""
        if not self.devices.main:
            return
        state = {
            "epoch": self.epoch,
            "batch": self.batch,
            "best": self.best,
            "psnr": self.psnr,
            "sums": [self.loss_sum, self.samples_done, self.skipped],
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": {"python": random.getstate(), "torch": torch.get_rng_state()},
            "run": self.position_key(),
        }
        if self.devices.device.type == "cuda":
            state["random"]["cuda"] = torch.cuda.get_rng_state(self.devices.device)
        if self.average is not None:
            state["model"] = self.model.state_dict()
            state["averaged"] = self.average.n_averaged
        done = self.epoch - (self.batch == 0)
        save_checkpoint(self.latest, self.weights, epoch=done, training=state)

    def position_key(self) -> dict:
        """What must stay the same for a position within an epoch to mean the same samples."""
        names = {"batch_size": self.config.OPTIM.BATCH_SIZE, "seed": self.config.SEED}
        return {**names, "samples": self.sampler.samples}

    def resume(self) -> None:
        """Go on from `model_latest.pth`, if there is one."""
        if not self.latest.exists():
            return self.log.line(f"nothing to resume from in {self.folder}: starting anew")
        checkpoint = read_checkpoint(self.latest)
        state = checkpoint.get("training")
        if state is None:
            raise InputError(f"{self.latest}: holds weights only, no state to resume from")
        load_weights(self.weights, self.latest)
        if self.average is not None:
            if "model" not in state:
                raise InputError(f"{self.latest}: holds no moving average, but OPTIM.EMA is set")
            self.model.load_state_dict(state["model"])
            self.average.n_averaged.copy_(state["averaged"])
        elif "model" in state:
            raise InputError(f"{self.latest}: holds a moving average, but OPTIM.EMA is 0")
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.best, self.psnr = state["best"], state["psnr"]
        self.epoch, self.batch = state["epoch"], state["batch"]
        if self.devices.main:
            self.loss_sum, self.samples_done, self.skipped = state["sums"]
        random.setstate(state["random"]["python"])
        torch.set_rng_state(state["random"]["torch"])
        if "cuda" in state["random"] and self.devices.device.type == "cuda":
            torch.cuda.set_rng_state(state["random"]["cuda"], self.devices.device)
        if self.batch and state["run"] != self.position_key():
            self.log.line(
                f"epoch {self.epoch} begins again: {state['run']} became {self.position_key()}"
            )
            self.begin_epoch(self.epoch)
        place = f", batch {self.batch + 1}" if self.batch else ""
        return self.log.line(f"resumed from {self.latest} at epoch {self.epoch}{place}")

    def _terminate(self, *_) -> None:
        self.terminated = True

    def stop_if_terminated(self) -> None:
        """After SIGTERM, save and end. Other processes wait in the next step for the main one, and
        end when it is gone."""
        if self.terminated and self.devices.main:
            self.save_latest()
            self.log.line(f"terminated: saved epoch {self.epoch} after batch {self.batch}")
            sys.exit(TERMINATED)


def outlive_signals(_worker: int) -> None:
    """Let the main process decide when a loader's worker ends: schedulers and terminals signal the
    whole group, and the step at hand still wants its batch."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
