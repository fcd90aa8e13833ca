import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tqdm import tqdm

import Deraining.train
from dgunet.base.errors import InputError
from dgunet.images.files import write_image
from dgunet.model.checkpoint import read_checkpoint
from dgunet.training import trainer as training
from dgunet.training.configuration import load_config
from dgunet.training.devices import Devices
from dgunet.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
TASK = Deraining.train.TASK
OPTIONS = {
    "GPU": "[]",
    "VERBOSE": "False",
    "MODEL.WIDTH": "8",
    "MODEL.WIDTH_STEP": "4",
    "MODEL.LAST_EXTRA": "4",
    "MODEL.STAGES": "2",
    "OPTIM.BATCH_SIZE": "3",  # of seven images: 1 + 2, 1 + 2 and 0 + 1 for two processes
    "OPTIM.NUM_EPOCHS": "2",
    "OPTIM.ACCUMULATE": "2",
    "OPTIM.CLIP_GRAD": "0.1",
    "OPTIM.EMA": "0.9",
    "TRAINING.TRAIN_PS": "16",
    "TRAINING.VAL_PS": "16",
    "TRAINING.VAL_AFTER_EVERY": "1",
    "TRAINING.WORKERS": "0",
}


def in_float64() -> None:
    """Make training compute in float64: Adam divides by gradients that may be nearly zero, and with
    them rounding would show."""
    build, images = training.build_model, Trainer.images
    training.build_model = lambda *args: build(*args).double()
    Trainer.images = lambda self, samples: tuple(i.double() for i in images(self, samples))


# Deraining/train.py in float64. With an argument, process 1 is terminated in epoch 2 after batch 2.
PROGRAM = """
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
from test_distributed import in_float64
from dgunet.Deraining.train import main
from dgunet.training.trainer import Trainer

in_float64()
if sys.argv[1] == "terminated":
    sys.argv.pop(1)
    take_step = Trainer.step

    def step(self, samples):
        if (self.epoch, self.batch, self.devices.rank) == (2, 1, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return take_step(self, samples)

    Trainer.step = step
main()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for index in range(7):
        image = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        noisy = (image + rng.normal(0, 20, image.shape)).clip(0, 255).astype(np.uint8)
        write_image(folder / "target" / f"photo{index}.png", image)
        write_image(folder / "input" / f"photo{index}.png", noisy)
    return folder


@pytest.fixture(autouse=True)
def one_thread_in_float64(monkeypatch):
    monkeypatch.setattr(training, "build_model", training.build_model)
    monkeypatch.setattr(Trainer, "images", Trainer.images)
    in_float64()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def options(data: Path, save_dir: Path, *more: str) -> list[str]:
    paths = {"TRAIN_DIR": data, "VAL_DIR": data, "SAVE_DIR": save_dir}
    keys = {**OPTIONS, **{f"TRAINING.{name}": str(path) for name, path in paths.items()}}
    return [word for pair in keys.items() for word in pair] + list(more)


def single(data: Path, save_dir: Path, *more: str) -> Trainer:
    opts = options(data, save_dir, *more)
    return Trainer(TASK, load_config(ROOT / "Deraining/training.yml", opts, TASK.recipe))


def start(command: list[str], **environment) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def program(folder: Path) -> list[str]:
    file = folder / "program.py"
    file.write_text(PROGRAM)
    return [str(file), str(ROOT / "tests/training")]


def assert_close(found, expected) -> None:
    """Compare states up to the order of summation in float64."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_close(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        for pair in zip(found, expected, strict=True):
            assert_close(*pair)
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-9)
    else:
        assert found == expected


def state(folder: Path, name: str = "latest") -> dict:
    checkpoint = read_checkpoint(folder / f"model_{name}.pth")
    if "training" in checkpoint:
        for key in ("config", "seconds"):
            checkpoint["training"].pop(key)
    for key in ("seconds", "made"):
        checkpoint.pop(key, None)
    return checkpoint


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> Path:
    """The run of one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "build_model", training.build_model)
        patch.setattr(Trainer, "images", Trainer.images)
        in_float64()
        trainer = single(data, tmp_path_factory.mktemp("alone"))
        trainer.run()
    return trainer.folder


def test_two_processes_take_the_steps_of_one(data, alone, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [*program(tmp_path), "--config", str(ROOT / "Deraining/training.yml")]
    process = start([*command, "--opts", *options(data, tmp_path)])
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 0, text
    folder = tmp_path / "Deraining/models/DGUNet"
    for name in ("latest", "best", "epoch_1", "epoch_2"):
        assert_close(state(folder, name), state(alone, name))
    assert state(alone)["training"]["best"]["psnr"] > 10
    # Process 0 alone writes and speaks.
    assert {path.name for path in folder.iterdir()} == {path.name for path in alone.iterdir()}
    assert len(list((folder / "tensorboard").iterdir())) == 1
    for line in ("budget: batch 3 (2 × 1.5) in 2 parts", "on cpu (1 threads, 2 processes)"):
        assert text.count(line) == 1
    logs = [(run / "train.log").read_text().splitlines() for run in (folder, alone)]
    assert len(logs[0]) == len(logs[1])
    losses = [[line.split(", lr")[0][20:] for line in log if ": loss" in line] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 2


def test_a_run_moves_between_one_and_two_processes(data, alone, tmp_path):
    """One process begins it, in its second epoch two go on, of which one is terminated. Both end,
    and save, and again one process ends the run."""
    trainer = single(data, tmp_path)
    trainer.run_epoch(tqdm(disable=True))
    trainer.sampler.set_position(2)
    trainer.step(next(iter(trainer.loader)))
    trainer.save_latest()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, *program(tmp_path), "terminated", "--config"]
    command += [str(ROOT / "Deraining/training.yml"), "--opts"]
    command += options(data, tmp_path, "TRAINING.RESUME", "True")
    processes = [
        start(command, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE="2", RANK=rank)
        for rank in ("0", "1")
    ]
    try:
        texts = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [143, 143], texts
    assert "at epoch 2, after batch 1" in texts[0]
    assert "terminated: saved epoch 2 after batch 2" in texts[0].splitlines()[-1]
    assert texts[1] == ""
    resumed = single(data, tmp_path, "TRAINING.RESUME", "True")
    assert (resumed.epoch, resumed.batch) == (2, 2)
    resumed.run()
    for name in ("latest", "best"):
        assert_close(state(resumed.folder, name), state(alone, name))


def test_one_process_of_torchrun_is_as_without(data, tmp_path, monkeypatch):
    for name, value in {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    devices = single(data, tmp_path).devices
    assert (devices.distributed, devices.main, devices.processors) == (False, True, 1)
    assert not torch.distributed.is_initialized()
    devices.close()


def test_one_process_shares_nothing():
    devices = Devices([])
    assert devices.sum(1.5, 2.0) == [1.5, 2.0]
    assert devices.agree(3, 4)
    model = torch.nn.Linear(1, 1)
    assert devices.wrap(model) is model


def test_a_process_with_another_checkpoint_is_refused(data, tmp_path, monkeypatch):
    """As on a second machine without the first one's checkpoints."""
    monkeypatch.setattr(Devices, "sum", lambda self, *values: [value + 1 for value in values])
    with pytest.raises(InputError, match=r"process 0 has other data or another .*latest.pth"):
        single(data, tmp_path)


# Devices


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that the machine has so many GPUs, and no process group is to be made."""

    def pretend(number: int, **environment) -> list:
        chosen = []
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device}")
        monkeypatch.setattr(torch.distributed, "init_process_group", chosen.append)
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        return chosen

    return pretend


@pytest.mark.parametrize(
    ("number", "asked", "device", "ids", "text"),
    [
        (2, [], "cpu", [], "cpu"),
        (0, [0, 1], "cpu", [], "torch finds no GPU for GPU: [0, 1]"),
        (4, [2], "cuda:2", [2], "GPU 2"),
        (4, [1, 3], "cuda:1", [1, 3], "GPU 1, GPU 3"),
    ],
)
def test_the_gpus_asked_for_are_used_where_there_are_any(gpus, number, asked, device, ids, text):
    gpus(number)
    devices = Devices(asked)
    assert (str(devices.device), devices.ids) == (device, ids)
    assert devices.processors == max(1, len(ids))
    assert text in str(devices) and ("no GPU" in str(devices)) == (number == 0)


def test_a_gpu_that_is_not_there_is_refused(gpus):
    gpus(1)
    message = r"GPU: \[0, 1, 2, 3\] asks for number 1, but CUDA finds 1, numbered from 0"
    with pytest.raises(InputError, match=message):
        Devices([0, 1, 2, 3])


@pytest.mark.parametrize(
    ("asked", "local", "chosen"),
    [([0, 1], 1, 1), ([3, 2], 1, 2), ([0], 1, 1), ([0, 1, 2, 3], 0, 0)],
)
def test_every_process_has_its_gpu(gpus, asked, local, chosen):
    made = gpus(4, WORLD_SIZE=4, RANK=2 + local, LOCAL_RANK=local, LOCAL_WORLD_SIZE=2)
    devices = Devices(asked)
    assert (str(devices.device), devices.ids) == (f"cuda:{chosen}", [])
    assert made == [torch.device("cuda", chosen), "nccl"]
    assert (devices.rank, devices.world_size, devices.main) == (2 + local, 4, False)
    assert str(devices) == f"GPU cuda:{chosen} × 4 processes"


def test_more_processes_than_gpus_are_refused(gpus):
    gpus(2, WORLD_SIZE=4, RANK=3, LOCAL_RANK=3, LOCAL_WORLD_SIZE=4)
    with pytest.raises(InputError, match="4 processes on this machine, but CUDA finds 2 GPUs"):
        Devices([0, 1])


def test_apples_gpu_is_used_where_one_is_asked_for(gpus, monkeypatch):
    gpus(0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert Devices([0]).device.type == "mps"
    assert Devices([]).device.type == "cpu"


def test_a_batch_smaller_than_the_processes_is_refused(gpus, data, tmp_path):
    gpus(0, WORLD_SIZE=4, RANK=0)
    with pytest.raises(InputError, match=r"OPTIM.BATCH_SIZE: 3 samples for 4 processes"):
        single(data, tmp_path)
