"""What several tests share."""

from types import ModuleType

import pytest
from fixtures import synthetic_weights


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """`synthetic_weights.py`, which makes checkpoints in the published format out of names."""
    return synthetic_weights
