"""What several tests share."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DATA = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """`synthetic_weights.py`, which makes checkpoints in the published format out of names."""
    spec = importlib.util.spec_from_file_location("synthetic", DATA / "synthetic_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
