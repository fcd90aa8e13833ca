"""Print how far this implementation is from the published one's reference outputs, case by case.

    python benchmarks/exactness.py

The reference (tests/data) was computed in float32 on a CPU with weights that depend only on a
parameter's name. The differences are of the seven stage images (largest, absolute), of the loss and
of its gradient's norms (largest, relative).
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from dgunet.model.checkpoint import load_weights
from dgunet.model.published_format import published_names
from dgunet.model.registry import MODELS, TASKS, build_model
from dgunet.training.losses import LOSSES

DATA = Path(__file__).resolve().parents[1] / "tests" / "fixtures"
sys.path.insert(0, str(DATA))
from synthetic_weights import published_checkpoint  # noqa: E402


def differences(task: str, model: str) -> tuple[int, float, float, float]:
    """Return parameters and the differences in images, loss and gradient norms."""
    case = f"{task}.{model}"
    network = build_model(task, model, {"cs_ratio": 10} if task == "Compressive_Sensing" else {})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "published.pth"
        torch.save(published_checkpoint(case), file)
        load_weights(network, file)
    reference = np.load(DATA / "outputs" / f"{case}.npz")
    images = network(torch.from_numpy(reference["input"]))
    loss = LOSSES[task](images, torch.from_numpy(reference["target"]))
    loss.backward()
    norms = {}
    names = published_names(network)
    for name, parameter in network.named_parameters(remove_duplicate=False):
        norms[names[name]] = parameter.grad.norm().item()
    pixels = max(
        np.abs(image.detach().numpy() - reference[f"stage{k}"]).max()
        for k, image in enumerate(reversed(images), 1)
    )
    expected = reference["grad_norms"]
    found = np.array([norms[str(name)] for name in reference["grad_names"]])
    relative = (np.abs(found - expected) / np.maximum(np.abs(expected), 1e-12)).max()
    loss_error = abs(loss.item() / float(reference["loss"]) - 1)
    return sum(p.numel() for p in network.parameters()), pixels, loss_error, relative


def main() -> None:
    print("| case | parameters | stage images | loss | gradient norms |")
    print("|---|---|---|---|---|")
    for task in TASKS:
        for model in MODELS:
            parameters, *errors = differences(task, model)
            cells = " | ".join(f"{error:.1e}" for error in errors)
            print(f"| {task} {model} | {parameters:,} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
