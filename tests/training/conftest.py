from pathlib import Path

import pytest
import torch
from training_runs import write_pairs


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Seven pairs of pictures."""
    return write_pairs(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Sums on several threads differ from those on one, as the subprocesses here run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
