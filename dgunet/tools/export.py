"""Export weights to a file that runs without this project: ONNX, or PyTorch's .pt2.

    python -m dgunet.tools.export small_gaussian25 -o denoiser.onnx
    python -m dgunet.tools.export WEIGHTS -o FILE.pt2

The graph takes `degraded`, float32 N×C×H×W in [0,1], of any batch, height and width that are
multiples of `multiple_of`. It returns the stage images `stage_1` … `stage_K`, not clamped; the last
is the restored image. Compressive sensing makes two files, FILE_measure.onnx (`degraded` →
`measurements`, N×m×H/32×W/32) and FILE_reconstruct.onnx (`measurements` → `stage_1` … `stage_K`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dgunet.base.errors import InputError, command
from dgunet.model.checkpoint import load_model, write_atomically
from dgunet.model.network import Network
from dgunet.model.pretrained import find_weights, read_record, trained_for

SUFFIXES = (".onnx", ".pt2")
OPSET = 18


class Stages(nn.Module):
    """A network's function, with its stage images first to last as a tuple."""

    def __init__(self, network: Network, function: Callable[[Tensor], list[Tensor]]):
        super().__init__()
        self.network, self.function = network, function

    def forward(self, given: Tensor) -> tuple[Tensor, ...]:
        made = self.function(given)
        return (made,) if isinstance(made, Tensor) else tuple(made[::-1])


class Float32Operators(TorchFunctionMode):
    """While it is active, what ONNX or a GPU in the browser lacks is computed otherwise: float64 as
    float32, the solving of a linear system by Gauss–Jordan elimination."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.linalg.solve_ex:
            return gauss_jordan(*args), torch.zeros(())
        args = [torch.float32 if a is torch.float64 else a for a in args]
        return function(*args, **(kwargs or {}))


def gauss_jordan(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve a symmetric positive definite system, N×n×n and N×n×m → N×n×m, without pivoting.

    A ridge of float32's rounding error keeps a singular matrix solvable."""
    size = matrix.shape[-1]
    unit = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    trace = (matrix * unit).sum((1, 2), keepdim=True)
    system = torch.cat([matrix + torch.finfo(matrix.dtype).eps * trace * unit, right], dim=2)
    for i in range(size):
        row = system[:, i : i + 1] / system[:, i : i + 1, i : i + 1]
        column = system[:, :, i : i + 1] - unit[:, i : i + 1]  # the pivot's own row becomes `row`
        system = system - column * row
    return system[:, :, size:]


def graphs(network: Network) -> dict[str, tuple[Stages, Tensor, int]]:
    """Return {what to append to the file's name: module, example input, multiple of its sides}."""
    multiple = network.multiple_of
    image = torch.rand(2, network.channels, 2 * multiple, 3 * multiple)
    if not hasattr(network, "measure"):
        return {"": (Stages(network, network), image, multiple)}
    with torch.no_grad():
        y = network.measure(image)
    return {
        "_measure": (Stages(network, network.measure), image, multiple),
        "_reconstruct": (Stages(network, network.reconstruct), y, 1),
    }


def metadata(weights: Path, network: Network) -> dict[str, str]:
    """Return what a user of the file needs to know, as strings."""
    record = read_record(weights)
    return {
        **{k: v if isinstance(v, str) else json.dumps(v) for k, v in network.config.items()},
        "degradation": trained_for(record) if record else "",
        "multiple_of": str(network.multiple_of),
        "padding": network.padding,
        "weights": weights.name,
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }


def export(weights: Path, output: Path) -> list[Path]:
    """Write the files and return their paths."""
    network, _ = load_model(weights)
    described = metadata(weights, network)
    written = []
    for name, (module, example, multiple) in graphs(network).items():
        path = output.with_name(f"{output.stem}{name}{output.suffix}")
        given = "measurements" if name == "_reconstruct" else "degraded"
        made = (
            ["measurements"]
            if name == "_measure"
            else [f"stage_{k + 1}" for k in range(network.sizes["stages"])]
        )
        save = _save_onnx if output.suffix == ".onnx" else _save_pt2
        save(path, module.eval(), example, multiple, given, made, described)
        written.append(path)
    return written


def _dynamic_shape(multiple: int):
    batch = torch.export.Dim("batch", min=1, max=2**16)
    height, width = (torch.export.Dim(n, min=2, max=2**16) for n in ("height", "width"))
    return {0: batch, 2: multiple * height, 3: multiple * width}


def _save_onnx(
    path: Path,
    module: nn.Module,
    example: Tensor,
    multiple: int,
    given: str,
    made: list[str],
    described: Mapping[str, str],
) -> None:
    with torch.no_grad(), Float32Operators():
        program = torch.export.export(
            module, (example,), dynamic_shapes=(_dynamic_shape(multiple),), strict=False
        )
    model = torch.onnx.export(
        program, input_names=[given], output_names=made, opset_version=OPSET, dynamo=True,
        verbose=False,
    ).model_proto  # fmt: skip
    for key, value in described.items():
        model.metadata_props.add(key=key, value=value)
    write_atomically(path, lambda file: file.write(model.SerializeToString()))


def _save_pt2(path, module, example, multiple, given, made, described) -> None:
    with torch.no_grad():
        program = torch.export.export(
            module, (example,), dynamic_shapes=(_dynamic_shape(multiple),), strict=False
        )
    extra = {"metadata.json": json.dumps(described, indent=1)}
    write_atomically(path, lambda file: torch.export.save(program, file, extra_files=extra))


@command
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dgunet.tools.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("weights", metavar="WEIGHTS", help="a checkpoint, or the name of bundled weights")
    add("-o", "--output", type=Path, required=True, metavar="FILE", help=" or ".join(SUFFIXES))
    options = parser.parse_args()
    if options.output.suffix not in SUFFIXES:
        raise InputError(f"{options.output}: expected a name that ends in {' or '.join(SUFFIXES)}")
    for path in export(find_weights(options.weights), options.output):
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
