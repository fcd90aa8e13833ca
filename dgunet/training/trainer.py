"""The training loop, one for all tasks.

    cd Deraining
    python train.py                                        training.yml: the published recipe
    python train.py --config mixed.yml --opts KEY VALUE …  another recipe, and other values
    torchrun --nproc_per_node 4 train.py                   one process for each of four GPUs
    python train.py --opts TRAINING.RESUME True            go on with a run

A task's train.py calls `main` with what is special about it. Read on from there: `Trainer` builds
data, model and optimizer, `Trainer.run` goes through the epochs, `Trainer.step` is one step.

Every random choice of the data is drawn from (seed, epoch, position), never from a global state. A
run that is killed and resumed therefore sees what it would have seen, and on the CPU ends with the
same weights, bit for bit. Ctrl-C and SIGTERM save first.
"""

import copy
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm
from yacs.config import CfgNode

from dgunet.base.errors import InputError
from dgunet.base.files import OwnedFolder
from dgunet.base.memory import require_memory
from dgunet.base.options import new_parser
from dgunet.data.augmentation import mixup
from dgunet.data.loading import Batches
from dgunet.data.sampler import EpochBatchSampler
from dgunet.inference.device import tf32
from dgunet.inference.memory import keep_freed_memory
from dgunet.inference.restorer import Restorer
from dgunet.model.checkpoint import load_weights, save_checkpoint
from dgunet.model.registry import build_model, task_folder
from dgunet.training.configuration import (
    Recipe,
    help_text,
    load_config,
    model_sizes,
    read_yaml,
    with_recipe,
)
from dgunet.training.devices import Autocast, Devices
from dgunet.training.log import RunLog, made
from dgunet.training.schedule import Schedule
from dgunet.training.signals import STOPPED, Stop, outliving
from dgunet.training.state import load_state, save_state

AUTOCAST = {"float32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SHARE_FOR_TIMING = 0.02  # of TRAINING.MINUTES; as much is kept for the end
WORKER = 20e6  # bytes that a process which loads data has to itself, at the least


@dataclass
class Task:
    """What is special about training a task.

    Attributes:
        name: the registry's name.
        recipe: dotted configuration keys and the published values that the YAML files do not hold;
            keys of this task alone as a whole `Key`.
        loss: (stage images, target) → the loss, a mean over the samples.
        training_data, validation_data: configuration → data set (see `dgunet.data.crops`); the
            latter may give None. A training set with a method `loader(sampler, device)` makes its
            batches itself; its `notes` are logged. A validation set may have a `batch_size` of its
            own, and a side of the `tile`s that it is to be restored by.
        paper: (epochs, images an epoch, batch size) of the published training, or a function of the
            configuration that returns them.
        prepare: (model, configuration, training data, whether the model is fresh) changes the model
            before training; it is not fresh if it has weights of a file, or is about to get some.
        shortcuts: command-line option → the keys that it sets, beside "--minutes".
        remark: content of the configuration file → what to tell of it, or nothing.
    """

    name: str
    recipe: Recipe
    loss: Callable[[Sequence[Tensor], Tensor], Tensor]
    training_data: Callable[[CfgNode], Dataset]
    validation_data: Callable[[CfgNode], Dataset | None]
    paper: tuple[int, int, int] | Callable[[CfgNode], tuple[int, int, int]]
    prepare: Callable[[nn.Module, CfgNode, Dataset, bool], None] | None = None
    shortcuts: Mapping[str, str] = field(default_factory=dict)
    remark: Callable[[Mapping], str] = lambda content: ""


def main(task: Task, description: str | None = None) -> None:
    """Run a task's train.py."""
    parser = new_parser(description, epilog=help_text(with_recipe(task.recipe)))
    parser.add_argument(
        "--config", default=task_folder(task.name) / "training.yml", help="YAML file"
    )
    parser.add_argument(
        "--opts", nargs="*", action="extend", default=[], metavar="KEY VALUE", help="override keys"
    )
    shortcuts = {"--minutes": "TRAINING.MINUTES", **task.shortcuts}
    for option, keys in shortcuts.items():
        text = " ".join(f"{key} N" for key in keys.split())
        text = f"--opts {text}" if text else "without effect; the published programs have it"
        parser.add_argument(option, dest=option, metavar="N", help=text)
    arguments = parser.parse_args()
    opts = []
    for option, keys in shortcuts.items():
        if (value := getattr(arguments, option)) is not None:
            opts += [word for key in keys.split() for word in (key, value)]
    config = load_config(arguments.config, opts + arguments.opts, task.recipe)
    config.MODEL.MODE = config.MODEL.MODE or task.name
    keep_freed_memory()
    file = Path(arguments.config)
    trainer = Trainer(task, config, file)
    if remark := task.remark(read_yaml(file)):
        trainer.log.line(f"{file}: {remark}")
    trainer.run()
    trainer.devices.close()


class Trainer:
    """One training run: its model, data, optimizer and where it stands. `config` is what
    `load_config` returns of the YAML file `recipe`, which the checkpoints name."""

    def __init__(self, task: Task, config: CfgNode, recipe: Path | None = None):
        self.task, self.config = task, config
        self.minutes = config.TRAINING.MINUTES
        self.epochs = 0.0 if self.minutes else float(config.OPTIM.NUM_EPOCHS)  # 0: not known yet
        self.started, self.spent = time.monotonic(), 0.0  # seconds of the processes before
        self.elapsed = 0.0  # seconds up to the last step, the same in all processes
        self.validated = 0  # after how many steps
        self.validating = 0.0  # seconds of all validations in this process
        save_dir = Path(config.TRAINING.SAVE_DIR)
        self.folder = save_dir / config.MODEL.MODE / "models" / config.MODEL.SESSION
        self.latest = self.folder / "model_latest.pth"
        self.devices = Devices(config.GPU)
        with self.devices.together():
            if self.devices.main and self.latest.exists() and not config.TRAINING.RESUME:
                raise InputError(
                    f"{self.latest} holds a run: TRAINING.RESUME True goes on with it, "
                    "another MODEL.SESSION starts beside it"
                )
        if config.TRAINING.COMPILE and self.devices.ids[1:]:
            raise InputError(
                f"TRAINING.COMPILE with GPU: {config.GPU}: nn.DataParallel cannot be compiled; "
                f"expected torchrun --nproc_per_node {len(config.GPU)} train.py …, or one GPU"
            )
        self.check_memory()
        torch.manual_seed(config.SEED)
        self.build_data()
        self.build_model()
        self.begin_epoch(1)
        self.set_length(self.epochs)
        self.best = {"epoch": 0, "psnr": -float("inf")}
        self.stop = Stop()  # signals to this process
        self.stopping = False  # whether any process was asked
        self.made = made(self.devices, recipe)
        with self.devices.together():  # the main process claims the folder, for all of them
            self.owned = OwnedFolder(self.folder) if self.devices.main else None
        self.log = RunLog(self.folder, self.devices.main, config.VERBOSE)
        if config.TRAINING.RESUME:
            load_state(self)
        with self.devices.together():
            if not self.devices.agree(self.sampler.samples, self.steps_done):
                raise InputError(
                    f"process {self.devices.rank} has other data or another {self.latest} than "
                    "the rest: several machines need a file system that they share"
                )

    def check_memory(self) -> None:
        """Raise `InputError` for a run that the memory certainly does not suffice for: counted are
        the weights (off the GPU with gradients and Adam's moments), the loader's processes, and a
        pair of crops in each."""
        config, keys = self.config, self.config.TRAINING
        with torch.device("meta"):  # without memory for the weights
            model = build_model(self.task.name, config.MODEL.NAME, model_sizes(config))
        weights = sum(parameter.numel() for parameter in model.parameters())
        copies = 1 if config.GPU else 4 + bool(config.OPTIM.EMA)
        require_memory(4 * copies * weights, f"training a network of {weights:,} parameters")
        crops = 2 * 4 * model.channels * keys.TRAIN_PS**2 * (1 + keys.WORKERS)
        text = f"TRAINING.WORKERS {keys.WORKERS} with TRAIN_PS {keys.TRAIN_PS}"
        require_memory(crops + keys.WORKERS * WORKER, text)

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
        self.model = build_model(self.task.name, config.MODEL.NAME, model_sizes(config))
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
        self.average = copy.deepcopy(self.model).requires_grad_(False) if optim.EMA else None
        self.averaged = 0  # steps that are in the average
        kind, compiled = self.devices.device.type, config.TRAINING.COMPILE
        network = Autocast(self.model, kind, AUTOCAST[config.TRAINING.PRECISION])
        self.network = self.devices.wrap(network, optim.ACCUMULATE == 1 and not compiled)
        if compiled:
            self.network = torch.compile(self.network, mode=compiled, dynamic=False)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(),
            lr=0.0,  # every step sets it
            weight_decay=optim.WEIGHT_DECAY,
            fused=kind == "cuda" or None,  # in one kernel
        )
        self.scaler = torch.amp.GradScaler(kind, enabled=config.TRAINING.PRECISION == "fp16")

    def run(self) -> None:
        """Train from where the run stands to its end."""
        self.log.start(self)
        try:
            with self.stop:
                if not self.epochs:
                    self.plan()
                with self.log.bar(self) as bar:
                    while not self.ended:
                        self.run_epoch(bar)
        finally:
            self.loader = None  # ends its workers
            self.log.close()
            if self.owned:
                self.owned.close()
        if self.best["epoch"]:
            self.log.line(f"best: epoch {self.best['epoch']}, PSNR {self.best['psnr']:.2f} dB")

    def begin_epoch(self, epoch: int) -> None:
        self.epoch, self.batch = epoch, 0  # how many of its batches are done
        self.loss_sum = self.samples_done = self.skipped = 0.0  # over all processes
        self.psnr: float | None = None  # of the last validation

    def set_length(self, epochs: float) -> None:
        self.epochs = epochs
        self.schedule = Schedule(self.config, self.sampler.batches, epochs)

    def plan(self) -> None:
        """Set the length of a run by minutes: validate what it starts from, time some steps at a
        learning rate of 0, forget what they left in the optimizer, and set how many steps fit into
        the time left."""
        scaler = self.scaler.state_dict()
        if self.validation_data is not None:
            self.validate()
        validation = self.devices.sum(self.validating * self.devices.main)[0]  # of one clock
        self.network.train()
        marks: list[float] = []  # seconds of the run after each step
        while not self.stopping and not self.enough(marks):
            self.sampler.set_position(1)
            for samples in self.loader:
                self.step(samples, rate=0.0)
                marks.append(self.elapsed)
                if self.stopping or self.enough(marks):
                    break
        self.optimizer.state.clear()
        self.scaler.load_state_dict(scaler)
        self.averaged = 0
        self.begin_epoch(1)
        self.stop_if_asked()
        each = (marks[-1] - marks[0]) / (len(marks) - 1)
        usable = 60 * (1 - SHARE_FOR_TIMING) * self.minutes
        left = usable - marks[-1] - self.config.TRAINING.VAL_TIMES * validation
        steps = max(1, int(left / each))
        self.set_length(steps / self.sampler.batches)
        self.log.line(
            f"{len(marks)} steps timed, {each:.3g} s each: {self.minutes:g} minutes suffice for "
            f"{steps:,} steps, {self.epochs:.3g} epochs"
        )

    def enough(self, marks: Sequence[float]) -> bool:
        """Tell whether these steps tell how long a step takes. The first may compile, allocate and
        choose algorithms, so it is not counted."""
        return len(marks) > 3 and marks[-1] - marks[0] > 60 * SHARE_FOR_TIMING * self.minutes

    def run_epoch(self, bar: tqdm) -> None:
        self.network.train()
        self.sampler.set_position(self.epoch, self.batch)
        began = saved = time.monotonic()
        validating, seen = self.validating, self.samples_seen
        self.validate_if_due()  # a run that was stopped in it comes back here
        for samples in self.loader:
            if self.steps_done >= self.schedule.steps:
                break
            loss = self.step(samples)
            bar.update(self.sampler.joint_size(self.batch - 1))
            bar.set_postfix_str(f"epoch {self.epoch}, loss {loss:.4f}, lr {self.rate:.2g}", False)
            self.stop_if_asked()
            self.validate_if_due()
            if time.monotonic() - saved > 60 * self.config.TRAINING.SAVE_MINUTES:
                self.save_latest()
                saved = time.monotonic()
        seconds = time.monotonic() - began - (self.validating - validating)
        rate = (self.samples_seen - seen) / max(seconds, 1e-9)
        self.log.epoch(self, self.loss_sum / self.samples_done, int(self.skipped), rate)
        if self.batch == self.sampler.batches:
            self.begin_epoch(self.epoch + 1)
        self.save_latest()

    def step(self, samples: dict, rate: float | None = None) -> float:
        """Take one step of the optimizer on this process's share of a batch, and return the mean
        loss of the joint batch. The learning rate is the schedule's, unless one is given.

        The share may be worked off in parts (OPTIM.ACCUMULATE). Each loss is a mean over samples,
        so it counts by its samples' part of the joint batch: every sample weighs the same, however
        the batch is divided over parts and processes.
        """
        config, devices = self.config, self.devices
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.steps_done) if rate is None else rate
        degraded, target = self.images(samples)
        if 0 <= config.DATA.MIXUP_AFTER < self.epoch:
            degraded, target = self.mixed(degraded, target)
        joint = self.sampler.joint_size(self.batch)
        counts = bool(samples["weight"].any())  # not so for a process without a share
        with tf32(config.TRAINING.PRECISION == "tf32"):
            loss = self.add_gradients(degraded, target, joint if counts else math.inf)
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if config.OPTIM.CLIP_GRAD:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), config.OPTIM.CLIP_GRAD, norm)
        value, norms, skipped, asked, self.elapsed = devices.sum(  # the step's only wait
            loss,
            norm,
            float(samples["skipped"].sum()),
            bool(self.stop),
            self.seconds * devices.main,  # one clock, so that all processes plan alike
        )
        # fp16 overflows now and then: such a step is left out, and the scale lowered.
        overflows = self.scaler.is_enabled() and not math.isfinite(norms)
        if not math.isfinite(value) or not (overflows or math.isfinite(norms)):
            kept = f"; {self.latest} is from before" if self.latest.exists() else ""
            raise InputError(
                f"epoch {self.epoch}, step {self.batch + 1}: the loss is {value:g} and its "
                f"gradient's norm {norms / devices.world_size:g}, in a batch of "
                f"{', '.join(samples['name'])}{kept}"
            )
        if not overflows:
            self.optimizer.step()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.update(self.average)
        self.batch += 1
        self.loss_sum += value * joint
        self.samples_done += joint
        self.skipped += skipped
        self.stopping = asked > 0
        return value

    def add_gradients(self, degraded: Tensor, target: Tensor, joint: float) -> Tensor:
        """Add the gradients of the loss over so many samples, of which these are some, and return
        their part of it."""
        parts = [images.chunk(self.config.OPTIM.ACCUMULATE) for images in (degraded, target)]
        total = torch.zeros((), device=self.devices.device)
        for number, (part, part_target) in enumerate(zip(*parts, strict=True), 1):
            last = number == len(parts[0])
            with nullcontext() if last else self.devices.accumulating(self.network):
                stages = self.network(part)
                loss = self.task.loss(stages, part_target) * (len(part) / joint)
                # Over processes gradients are averaged, and are to be summed.
                self.scaler.scale(loss * self.devices.world_size).backward()
            total += loss.detach()
        return total

    def images(self, samples: dict) -> tuple[Tensor, Tensor]:
        """Return the degraded and target images on the device; grey ones as three equal channels,
        where the network takes three."""
        degraded, target = (
            samples[key]
            .to(self.devices.device, non_blocking=True)
            .expand(-1, self.model.channels, -1, -1)
            .contiguous(memory_format=self.memory_format)
            for key in ("degraded", "target")
        )
        return degraded, target

    def mixed(self, degraded: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return this process's share of the joint batch, each pair of it blended with another of
        the whole."""
        cuts, rank = self.sampler.cuts(self.batch), self.devices.rank
        degraded, target = (self.devices.gather(images, cuts) for images in (degraded, target))
        rng = np.random.default_rng([self.config.SEED, self.epoch, self.batch, 0, 2])
        share = slice(cuts[rank], max(cuts[rank] + 1, cuts[rank + 1]))  # one that does not count
        degraded, target = (
            images[share].contiguous(memory_format=self.memory_format)
            for images in mixup(degraded, target, rng)
        )
        return degraded, target

    @torch.no_grad()
    def update(self, average: nn.Module) -> None:
        """Update the exponential moving average, which forgets faster in its first steps."""
        decay = min(self.config.OPTIM.EMA, (1 + self.averaged) / (10 + self.averaged))
        weights = [list(model.parameters()) for model in (average, self.model)]
        torch._foreach_lerp_(*weights, 1 - decay if self.averaged else 1.0)
        self.averaged += 1

    @property
    def seconds(self) -> float:
        """What the run has taken, with the processes that it goes on from."""
        return self.spent + time.monotonic() - self.started

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do, not even the last epoch's validation or end."""
        done = self.steps_done >= self.schedule.steps
        return done and self.batch < self.sampler.batches and not self.validation_due

    @property
    def validation_due(self) -> bool:
        done = self.steps_done
        new = self.batch > 0 and self.validated != done
        return self.validation_data is not None and new and self.schedule.validates_after(done)

    @property
    def steps_done(self) -> int:
        return (self.epoch - 1) * self.sampler.batches + self.batch

    @property
    def rate(self) -> float:
        """Learning rate of the last step."""
        return self.schedule.rate(max(0, self.steps_done - 1))

    @property
    def samples_seen(self) -> int:
        """Samples of all steps done, over all processes."""
        done = min(self.batch * self.sampler.batch_size, self.sampler.samples)
        return (self.epoch - 1) * self.sampler.samples + done

    @property
    def samples_in_all(self) -> int:
        """Samples of the whole run; 0 where its length is not known yet."""
        return round(self.epochs * self.sampler.samples)

    @property
    def weights(self) -> nn.Module:
        """The model that is validated and saved: the moving average where there is one."""
        return self.model if self.average is None else self.average

    def validate_if_due(self) -> None:
        if self.validation_due:
            self.validate()
            if self.config.TRAINING.KEEP_EPOCHS:
                self.save(self.folder / f"model_epoch_{self.epoch}.pth", psnr=self.psnr)

    @torch.no_grad()
    def validate(self) -> None:
        """Take the mean PSNR in dB of the last stage's images, clamped to [0,1], over the centre
        crops of the validation set; keep the weights if they are the best."""
        began = time.monotonic()
        total, count, shown = 0.0, 0, []
        precision, device = self.config.TRAINING.PRECISION, self.devices.device
        dtype, tile = AUTOCAST[precision], getattr(self.validation_data, "tile", 0)
        model = self.weights.eval()
        restorer = Restorer(
            model, device=device, tile=tile, tile_overlap=0, precision=precision, optimize=False
        )
        for samples in self.validation:
            if self.stop:
                break
            degraded, target = self.images(samples)
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                restored = restorer.restore(degraded).float()
            if samples["target"].shape[1] == 1:
                restored = restored.mean(1, keepdim=True).expand_as(target)
            restored = restored.clamp(0, 1)
            errors = (restored - target).square().mean((1, 2, 3)).cpu().double()
            # An exact image, such as a white one, counts as 100 dB: infinity would hide the others.
            total += float((-10 * errors.clamp(min=1e-10).log10()).sum())
            count += len(errors)
            if not shown:
                shown = [degraded[:3].clamp(0, 1), restored[:3], target[:3]]
        total, count, asked = self.devices.sum(total, count, bool(self.stop))
        self.network.train()
        self.stopping = asked > 0
        self.stop_if_asked()
        self.psnr, self.validated = total / count, self.steps_done
        self.validating += time.monotonic() - began
        self.log.validation(self, shown)
        if self.psnr > self.best["psnr"]:
            self.best = {"epoch": self.epoch, "psnr": self.psnr}
            self.save(self.folder / "model_best.pth", psnr=self.psnr)

    def save(self, path: Path, **extra) -> None:
        if self.devices.main:
            extra |= {"samples": self.samples_seen, "seconds": self.seconds, "made": self.made}
            save_checkpoint(path, self.weights, epoch=self.epoch, **extra)

    def save_latest(self) -> None:
        """Save the whole state, from which the run goes on as if it had never stopped."""
        if self.devices.main:
            save_state(self)

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
