"""Whether a training run fits the memory."""

import torch
from yacs.config import CfgNode

from dgunet.base.memory import require_memory
from dgunet.model.registry import build_model
from dgunet.training.configuration import model_sizes

_WORKER = 20e6  # bytes that a process which loads data has to itself, at the least


def require_training_memory(task: str, config: CfgNode) -> None:
    """Raise `InputError` for a run that the memory certainly does not suffice for.

    Counted are the weights, with their gradients and Adam's moments unless these are on a GPU, one
    pair of crops for each process, and the processes. What the network keeps for the backward pass
    comes on top of that."""
    keys, optim = config.TRAINING, config.OPTIM
    with torch.device("meta"):  # without memory for the weights
        model = build_model(task, config.MODEL.NAME, model_sizes(config))
    weights = sum(parameter.numel() for parameter in model.parameters())
    copies = 1 if config.GPU else 4 + bool(optim.EMA)
    require_memory(4 * copies * weights, f"training a network of {weights:,} parameters")
    crops = 2 * 4 * model.channels * keys.TRAIN_PS**2 * (1 + keys.WORKERS)
    workers = keys.WORKERS * _WORKER
    require_memory(
        crops + workers, f"TRAINING.WORKERS {keys.WORKERS} with TRAIN_PS {keys.TRAIN_PS}"
    )
