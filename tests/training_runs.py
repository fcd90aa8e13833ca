"""Small training runs, in this process or others, and comparisons of their states."""

import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dgunet.images.files import write_image
from dgunet.model.checkpoint import read_checkpoint
from dgunet.model.registry import task_module
from dgunet.training import trainer as training
from dgunet.training.configuration import load_config
from dgunet.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
TASKS = {task: task_module(task, "train").TASK for task in ("Deblurring", "Deraining", "Denoising")}
SIZES = {"width": 8, "width_step": 4, "last_extra": 4, "stages": 2}
SMALL = {
    "GPU": [],
    "VERBOSE": False,
    **{f"MODEL.{name.upper()}": size for name, size in SIZES.items()},
    "OPTIM.BATCH_SIZE": 3,  # of seven images: 1 + 2, 1 + 2 and 0 + 1 for two processes
    "OPTIM.NUM_EPOCHS": 3,
    "TRAINING.TRAIN_PS": 16,
    "TRAINING.VAL_PS": 16,
    "TRAINING.WORKERS": 0,
    "TRAINING.VAL_EPOCHS": [],
    "TRAINING.VAL_TIMES": 1,
    "TRAINING.VAL_AFTER_EVERY": 1,
    "DATA.MIXUP_AFTER": -1,
}
# Of processes: copies of one that has imported everything and started no thread yet.
START = "forkserver"
multiprocessing.set_forkserver_preload(["training_runs"])


def write_pairs(folder: Path) -> Path:
    """Write seven pairs of smooth and noisy pictures, 24×30, in `input` and `target`."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:24, :30]
    for index in range(7):
        down, right = rng.uniform(0.05, 0.4, (2, 3))
        phase = rows[..., None] * down + columns[..., None] * right + rng.uniform(0, 6, 3)
        target = 127.5 + 110 * np.sin(phase)
        noisy = target + rng.normal(0, 25, target.shape)
        for part, image in (("target", target), ("input", noisy)):
            image = image.round().clip(0, 255).astype(np.uint8)
            write_image(folder / part / f"photo{index}.png", image)
    return folder


def options(data: Path, save_dir: Path, **keys) -> list[str]:
    """Return SMALL and further keys (`OPTIM__EMA=0.9`) as --opts takes them."""
    paths = {"TRAIN_DIR": data, "VAL_DIR": data, "SAVE_DIR": save_dir}
    keys = {f"TRAINING__{name}": path for name, path in paths.items()} | keys
    keys = SMALL | {name.replace("__", "."): value for name, value in keys.items()}
    return [str(word) for pair in keys.items() for word in pair]


def trainer_for(data: Path, save_dir: Path, task: str = "Denoising", **keys) -> Trainer:
    opts = options(data, save_dir, **keys)
    task = TASKS[task]
    return Trainer(task, load_config(ROOT / task.name / "training.yml", opts, task.recipe))


def in_float64(patch: pytest.MonkeyPatch) -> None:
    """Make training compute in float64: Adam divides by gradients that may be nearly zero, and with
    them rounding would show."""
    build, images = training.build_model, Trainer.images
    patch.setattr(training, "build_model", lambda *args: build(*args).double())
    patch.setattr(
        Trainer, "images", lambda self, samples: tuple(i.double() for i in images(self, samples))
    )


def run_program(
    output: Path,
    task: str,
    opts: list[str],
    environment: dict[str, str],
    patch=None,
    signalled=None,
) -> None:
    """Run a task's train.py in this process, a new one that ends with it.

    Args:
        output: where its output goes, but for the suffixes .out and .err.
        patch: a function of a `MonkeyPatch`.
        signalled: epoch, batch, rank and number: that process gets a signal after that batch, and
            so do its workers, as those of terminals and schedulers.
    """
    os.setsid()
    os.environ.update(environment)
    rank = os.environ.get("RANK", "0")
    for number, suffix in ((1, ".out"), (2, ".err")):
        with open(f"{output}{rank}{suffix}", "w") as file:
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", 1, closefd=False) for n in (1, 2))
    if patch:
        patch(pytest.MonkeyPatch())
    take_step = Trainer.step

    def step(self, samples):
        loss = take_step(self, samples)
        if signalled and (self.epoch, self.batch, self.devices.rank) == signalled[:3]:
            os.killpg(0, signalled[3])
        return loss

    Trainer.step = step
    config = str(ROOT / task / "training.yml")
    sys.argv = ["train.py", "--config", config, "--opts", *opts]
    torch.set_num_threads(1)
    task_module(task, "train").main()


def start_program(*arguments, **keywords) -> multiprocessing.Process:
    """Start `run_program` in a process of its own."""
    process = multiprocessing.get_context(START).Process(
        target=run_program, args=arguments, kwargs=keywords
    )
    process.start()
    return process


def state(folder: Path, name: str = "latest") -> dict:
    """Return what must not depend on how often a run was interrupted, and on how many processes
    took part."""
    checkpoint = read_checkpoint(folder / f"model_{name}.pth")
    for key in ("seconds", "made"):
        checkpoint.pop(key, None)
    for key in ("config", "seconds"):
        checkpoint.get("training", {}).pop(key, None)
    return checkpoint


def assert_same(found, expected, atol: float = 0, where: str = "") -> None:
    """Compare states, or lists of weights: bit for bit, unless a tolerance is given."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_same(found[key], expected[key], atol, f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for index, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, atol, f"{where}[{index}]")
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=0, atol=atol, msg=where or None)
    elif isinstance(expected, float) and atol:
        assert found == pytest.approx(expected, abs=atol), where
    else:
        assert found == expected, where
