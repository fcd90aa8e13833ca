"""Small random networks for tests."""

import torch

from dgunet.model.network import Network
from dgunet.model.registry import build_model

SMALL = {"width": 8, "width_step": 4, "stages": 2}


def small(task: str, model: str = "DGUNet", **sizes: int) -> Network:
    torch.manual_seed(0)
    return build_model(task, model, {**SMALL, **sizes}).eval()
