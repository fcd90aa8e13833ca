"""Print the parameters of every model and the work that a forward pass is.

    python benchmarks/cost.py

GFLOP: 10⁹ floating-point operations, a multiplication and an addition being two, of convolutions
and matrix products; what is left is under one percent of them. Nothing is computed: the tensors
have sizes only. A training step is three times a forward pass.
"""

import argparse
import functools

import torch
from measure import RESULTS, markdown, write_text
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from dgunet.model.registry import MODELS, TASKS, build_model

SMALL = {"width": 20, "width_step": 10, "last_extra": 8, "stages": 3}  # each task's small.yml
SIZES = ((256, 256), (320, 480), (736, 1280))


@functools.cache
def _count(task: str, model: str, sizes: tuple, shape: tuple[int, int, int]) -> float:
    with FakeTensorMode(), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network = build_model(task, model, dict(sizes)).eval()
        network(torch.zeros(shape[0], network.channels, *shape[1:]))
    return counter.get_total_flops() / 1e9


def gflop(task: str, model: str, sizes: dict, shape: tuple[int, int, int]) -> float:
    """Return the GFLOP of a forward pass on N×H×W images; `sizes` as `build_model` takes them."""
    return _count(task, model, tuple(sizes.items()), shape)


def parameters(task: str, model: str, sizes: dict) -> int:
    """Return the number of parameters, each counted once."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(task, model, sizes).parameters())


def table() -> str:
    """Return all models' as a Markdown table."""
    rows = []
    models = [(task, model, {}) for task in TASKS for model in MODELS]
    small = [(task, "DGUNet", SMALL) for task in TASKS if task != "Compressive_Sensing"]
    for task, model, sizes in models + small[:1]:
        name = f"{task} {model}" if not sizes else "any of small.yml"
        work = [gflop(task, model, sizes, (1, *size)) for size in SIZES]
        rows.append([name, f"{parameters(task, model, sizes):,}", *(f"{w:,.0f}" for w in work)])
    header = ["model", "parameters", *(f"GFLOP at {height}×{width}" for height, width in SIZES)]
    return markdown(header, rows)


def main(arguments: list[str] | None = None) -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(arguments)
    text = table()
    write_text(RESULTS / "cost.md", f"# Parameters and work\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    main()
