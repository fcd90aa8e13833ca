"""Whether a training run fits the memory."""

import torch
from yacs.config import CfgNode

from dgunet.base.memory import require_memory
from dgunet.model.registry import build_model
from dgunet.training.configuration import model_sizes

WORKER = 20e6  # bytes that a process which loads data has to itself, at the least


def require_training_memory(task: str, config: CfgNode) -> None:
    """Raise `InputError` for a run that the memory certainly does not suffice for: counted are the
    weights (off the GPU with gradients and Adam's moments), the loader's processes, and a pair of
    crops in each."""
    keys = config.TRAINING
    with torch.device("meta"):  # without memory for the weights
        model = build_model(task, config.MODEL.NAME, model_sizes(config))
    weights = sum(parameter.numel() for parameter in model.parameters())
    copies = 1 if config.GPU else 4 + bool(config.OPTIM.EMA)
    require_memory(4 * copies * weights, f"training a network of {weights:,} parameters")
    crops = 2 * 4 * model.channels * keys.TRAIN_PS**2 * (1 + keys.WORKERS)
    text = f"TRAINING.WORKERS {keys.WORKERS} with TRAIN_PS {keys.TRAIN_PS}"
    require_memory(crops + keys.WORKERS * WORKER, text)
