"""What several tests share."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from fixtures import synthetic_weights
from networks import small

from dgunet.model.checkpoint import save_checkpoint
from dgunet.model.registry import TASKS


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """`synthetic_weights.py`, which makes checkpoints in the published format out of names."""
    return synthetic_weights


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> dict[str, Path]:
    """Small random networks by task, and by "identity TASK" ones that return their input."""
    folder, paths = tmp_path_factory.mktemp("weights"), {}
    for task in TASKS:
        network = small(task)
        paths[task] = folder / f"{task}.pth"
        save_checkpoint(paths[task], network)
        network.zero_image_convolutions()
        paths[f"identity {task}"] = folder / f"identity_{task}.pth"
        save_checkpoint(paths[f"identity {task}"], network)
    return paths


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a program's `main`. Return what it printed, tables without their padding; of a refused
    run the one line of its error."""

    def run(program: ModuleType, *arguments) -> str:
        monkeypatch.setattr(sys, "argv", [program.__file__, *map(str, arguments)])
        capsys.readouterr()
        try:
            program.main()
        except SystemExit as end:
            line = capsys.readouterr().err
            assert end.code == 2 and line.startswith("error: ") and line.count("\n") == 1
            return line
        return re.sub(" +", " ", "".join(capsys.readouterr()))

    return run
