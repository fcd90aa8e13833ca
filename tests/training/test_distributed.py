import signal
import socket
from pathlib import Path

import pytest
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from tqdm import tqdm
from training_runs import (
    START,
    assert_same,
    in_float64,
    options,
    run_program,
    start_program,
    state,
    trainer_for,
)

from dgunet.base.errors import InputError
from dgunet.base.files import OwnedFolder
from dgunet.training.devices import Devices
from dgunet.training.trainer import Trainer

KEYS = {"OPTIM__NUM_EPOCHS": 2, "OPTIM__CLIP_GRAD": 0.1, "OPTIM__EMA": 0.9, "DATA__MIXUP_AFTER": 0}


@pytest.fixture(autouse=True)
def everything_in_float64(monkeypatch):
    in_float64(monkeypatch)


def single(data: Path, save_dir: Path, **keys) -> Trainer:
    return trainer_for(data, save_dir, "Deraining", **KEYS, **keys)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> Path:
    """The run of one process."""
    with pytest.MonkeyPatch.context() as patch:
        in_float64(patch)
        trainer = single(data, tmp_path_factory.mktemp("alone"))
        trainer.run()
    return trainer.folder


def compiled_without_code(patch: pytest.MonkeyPatch) -> None:
    """Compile as far as the graphs go: that takes seconds, and code for them half a minute."""
    in_float64(patch)
    compile = torch.compile
    patch.setattr(
        torch, "compile", lambda network, mode, **o: compile(network, backend="eager", **o)
    )


def test_two_processes_take_the_steps_of_one(data, alone, tmp_path):
    """Started by what `torchrun` starts them by."""
    keys = {"TRAINING__COMPILE": "default", "OPTIM__ACCUMULATE": 2}
    torchrun = LaunchConfig(
        1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method=START,
        monitor_interval=0.1,
    )  # fmt: skip
    opts = options(data, tmp_path, **KEYS, **keys)
    arguments = tmp_path / "rank", "Deraining", opts, {}, compiled_without_code
    elastic_launch(torchrun, run_program)(*arguments)
    folder = tmp_path / "Deraining/models/DGUNet"
    for name in ("latest", "best", "epoch_1", "epoch_2"):
        assert_same(state(folder, name), state(alone, name), atol=1e-9)
    assert state(alone)["training"]["best"]["psnr"] > 10
    # Process 0 alone writes and speaks.
    assert {path.name for path in folder.iterdir()} == {path.name for path in alone.iterdir()}
    assert len(list((folder / "tensorboard").iterdir())) == 1
    assert (tmp_path / "rank1.out").read_text() == ""
    text = (tmp_path / "rank0.out").read_text()
    for line in ("budget: batch 3 (2 × 1.5)", "on cpu (1 threads, 2 processes)"):
        assert text.count(line) == 1
    logs = [(run / "train.log").read_text().splitlines() for run in (folder, alone)]
    assert len(logs[0]) == len(logs[1])
    losses = [[line.split(", lr")[0][20:] for line in log if ": loss" in line] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 2


def two_processes(data: Path, folder: Path, signalled=None, **keys) -> tuple[list, ...]:
    """Run two processes as on two machines, and return their exit codes, outputs and errors."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    arguments = folder / "rank", "Deraining", options(data, folder, **KEYS, **keys)
    processes = [
        start_program(*arguments, shared | {"RANK": rank}, in_float64, signalled) for rank in "01"
    ]
    for process in processes:
        process.join(120)
    told = [[(folder / f"rank{r}.{kind}").read_text() for r in "01"] for kind in ("out", "err")]
    return [process.exitcode for process in processes], *told


def test_a_run_moves_between_one_and_two_processes(data, alone, tmp_path):
    """One process begins it, in its second epoch two go on, of which one is terminated. Both end,
    and save, and again one process ends the run."""
    trainer = single(data, tmp_path)
    trainer.run_epoch(tqdm(disable=True))
    trainer.sampler.set_position(2)
    trainer.step(next(iter(trainer.loader)))
    trainer.save_latest()
    trainer.owned.close()
    signalled = (2, 2, 1, signal.SIGTERM)
    keys = {"TRAINING__RESUME": True, "TRAINING__CHECKPOINT_STAGES": True}
    codes, texts, _ = two_processes(data, tmp_path, signalled, **keys)
    assert codes == [143, 143], texts
    assert "at epoch 2, after batch 1" in texts[0]
    assert "terminated: saved epoch 2 after batch 3" in texts[0].splitlines()[-1]
    assert texts[1] == ""
    resumed = single(data, tmp_path, TRAINING__RESUME=True)
    assert (resumed.epoch, resumed.batch) == (2, 3)
    resumed.run()
    for name in ("latest", "best"):
        assert_same(state(resumed.folder, name), state(alone, name), atol=1e-9)


def test_two_runs_do_not_share_a_folder(data, tmp_path):
    """All processes end at once, and the one that owns folders says why."""
    folder = tmp_path / "Deraining/models/DGUNet"
    with OwnedFolder(folder):
        codes, _, (error, other_error) = two_processes(data, tmp_path)
        assert [path.name for path in folder.iterdir()] == [".lock"]
    assert codes == [2, 2] and other_error == "" and error.count("\n") == 1
    assert error.startswith(f"error: {folder}: process ")


def test_a_process_with_another_checkpoint_is_refused(data, tmp_path, monkeypatch):
    """As on a second machine without the first one's checkpoints."""
    monkeypatch.setattr(Devices, "agree", lambda self, *values: False)
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
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr(
            torch.distributed, "init_process_group", lambda *a, **k: chosen.append((*a, k))
        )
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
        (4, [2], "cuda:2", [2], "GPU 2"),
        (4, [1, 3], "cuda:1", [1, 3], "GPU 1, GPU 3"),
    ],
)
def test_the_gpus_asked_for_are_used_where_there_are_any(gpus, number, asked, device, ids, text):
    gpus(number)
    devices = Devices(asked)
    assert (str(devices.device), devices.ids) == (device, ids)
    assert devices.processors == max(1, len(ids))
    assert text in str(devices)


@pytest.mark.parametrize(
    ("asked", "local", "chosen"),
    [([0, 1], 1, 1), ([3, 2], 1, 2), ([0], 1, 1), ([0, 1, 2, 3], 0, 0)],
)
def test_every_process_has_its_gpu(gpus, asked, local, chosen):
    made = gpus(4, WORLD_SIZE=4, RANK=2 + local, LOCAL_RANK=local, LOCAL_WORLD_SIZE=2)
    devices = Devices(asked)
    assert (str(devices.device), devices.ids) == (f"cuda:{chosen}", [])
    device = torch.device("cuda", chosen)
    assert made == [device, ("nccl", {"device_id": device})]
    assert (devices.rank, devices.world_size, devices.main) == (2 + local, 4, False)
    assert str(devices) == f"GPU cuda:{chosen} × 4 processes"


@pytest.mark.parametrize(
    ("number", "asked", "processes", "message"),
    [
        (1, [0, 1, 2, 3], 1, r"GPU: \[0, 1, 2, 3\] asks for number 1, but CUDA finds 1, numbered"),
        (2, [0, 1], 4, "4 processes on this machine, but CUDA finds 2 GPUs"),
        (0, [0, 1], 1, r"GPU: \[0, 1\], but PyTorch .* finds no GPU; expected one, or"),
        (0, [0, 1], 2, r"GPU: \[0, 1\], but PyTorch .* finds no GPU; expected one, or"),
    ],
)
def test_gpus_that_are_not_there_are_refused(gpus, number, asked, processes, message):
    last = processes - 1
    gpus(number, WORLD_SIZE=processes, RANK=last, LOCAL_RANK=last, LOCAL_WORLD_SIZE=processes)
    with pytest.raises(InputError, match=message):
        Devices(asked)


def test_data_parallel_is_not_compiled(gpus, data, tmp_path):
    gpus(2)
    with pytest.raises(InputError, match=r"COMPILE with GPU: .* torchrun --nproc_per_node 2"):
        single(data, tmp_path, GPU=[0, 1], TRAINING__COMPILE="default")


def test_apples_gpu_is_used_where_one_is_asked_for(gpus, monkeypatch):
    gpus(0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert [Devices(asked).device.type for asked in ([0], [])] == ["mps", "cpu"]
