"""Export weights to a file that runs without this project: ONNX, or PyTorch's .pt2.

    python -m dgunet.tools.export small_gaussian25 -o denoiser.onnx
    python -m dgunet.tools.export WEIGHTS -o FILE.onnx --precision float16 --check photo.jpg
    python -m dgunet.tools.export WEIGHTS -o FILE.pt2

A file takes `degraded`, float32, N×C×H×W in [0,1]: any N, and any H and W that are multiples of
`multiple_of`, one of them at least `min_long_side`. It returns all stage images, `stage_1` …
`stage_K`, not clamped; the last is the restored image. Of compressive sensing there are two files:
FILE_measure.onnx takes `degraded` and returns `measurements`, float32, N×m×H/32×W/32, and
FILE_reconstruct.onnx takes these and returns the stage images.

The file's metadata says what it is: task, model, sizes, degradation, precision, licence of the
weights and of the data that they were trained on (as far as known), channels, multiple_of,
min_long_side, padding ("reflect" or "zeros", at the bottom and right) and the SHA-256 of the
weights. --check restores a photograph by the file and by PyTorch and prints the difference.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dgunet.base.errors import InputError, command
from dgunet.base.files import sha256, write_atomically
from dgunet.base.options import new_parser
from dgunet.images.files import middle, read_gray, read_rgb, to_tensor
from dgunet.inference.optimize import optimize_for_inference
from dgunet.model.checkpoint import load_model
from dgunet.model.network import Network
from dgunet.model.pretrained import bundled_weights, find_weights, read_record, trained_for

SUFFIXES = (".onnx", ".pt2")
PRECISIONS = {"float32": "float32", "float16": "fp16"}  # ours → `optimize_for_inference`'s
OPSET = 18
LARGEST_SIDE = 2**16
NEWTON_STEPS = 8  # resolve what the ridge of DGUNet itself, 1e-10 of the trace, leaves
CHECKED_SIDE = 512  # of the photograph's middle


class Part(NamedTuple):
    """What becomes one file: the whole network, or a half of compressive sensing."""

    suffix: str  # of the file's name
    module: nn.Module
    example: Tensor
    multiple_of: int  # of which the example's height and width must be multiples
    given: str
    returned: list[str]


def parts(network: Network) -> list[Part]:
    """Return the files that a network becomes."""
    side = network.multiple_of
    image = torch.rand(2, network.channels, 2 * side, 3 * side)
    stages = [f"stage_{k + 1}" for k in range(network.sizes["stages"])]
    if not hasattr(network, "measure"):
        return [Part("", FirstToLast(network, network), image, side, "degraded", stages)]
    y = network.measure(image)
    reconstruct = FirstToLast(network, network.reconstruct)
    return [
        Part("_measure", network.A, image, side, "degraded", ["measurements"]),
        Part("_reconstruct", reconstruct, y, 1, "measurements", stages),
    ]


class FirstToLast(nn.Module):
    """A function of a network's as a module that returns its stage images in their order."""

    def __init__(self, network: Network, function: Callable[[Tensor], list[Tensor]]):
        super().__init__()
        self.network, self.function = network, function

    def forward(self, given: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.function(given)[::-1])


class PortableOperators(TorchFunctionMode):
    """While active, computes otherwise what ONNX or a browser's GPU lacks: what would be float64 in
    float32, and the solution of a system VᵀV w = right by `solve_normal_equations`.

    V is needed for that, and is what was first cast to float64 since the last system."""

    def __init__(self):
        super().__init__()
        self.cast: list[Tensor] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.linalg.solve_ex:
            V, self.cast = self.cast[0], []
            return solve_normal_equations(V, args[1]), None
        if function is torch.addcmul:  # whose broadcasting PyTorch 2.6 does not export
            return args[0] + args[1] * args[2]
        if torch.float64 in args:
            self.cast.append(args[0])
            args = [torch.float32 if a is torch.float64 else a for a in args]
        result = function(*args, **(kwargs or {}))
        if function is torch.Tensor.mean:  # runtimes' sums are inexact, which tells on flat images
            result = result + function(args[0] - result, *args[1:], **(kwargs or {}))
        return result


def solve_normal_equations(V: Tensor, right: Tensor) -> Tensor:
    """Solve VᵀV w = right in float32.  V: N×P×n, right: N×n×m → N×n×m.

    VᵀV squares V's condition number, which is too much for float32 on flat images. Hence V's
    columns are first made nearly orthonormal, V T, and the system is solved for these (as Cholesky
    QR twice: Yamamoto et al., "Roundoff error analysis of the CholeskyQR2 algorithm", ETNA 2015).
    Its matrix has eigenvalues from 0 to 1, nearly all 1, so Newton's iteration inverts it soon."""
    T = inverse_factor(V.mT @ V)
    gram = (V @ T).mT @ (V @ T)
    twice = 2 * torch.eye(gram.shape[-1])
    inverse = twice - gram
    for _ in range(NEWTON_STEPS):
        inverse = inverse @ (twice - gram @ inverse)
    return T @ (inverse @ (T.mT @ right))


def inverse_factor(matrix: Tensor) -> Tensor:
    """Return an upper triangular T with T Tᵀ = (matrix + ridge)⁻¹, by elimination written out.
    N×n×n, symmetric and positive semidefinite → N×n×n. The ridge is of the size of the rounding
    errors of `matrix`: it keeps the pivots positive."""
    unit = torch.eye(matrix.shape[-1])
    ridge = torch.finfo(matrix.dtype).eps * (matrix * unit).sum((1, 2), keepdim=True) + 1e-30
    system, rows = torch.cat([matrix + ridge * unit, unit.expand_as(matrix)], dim=2), []
    for _ in unit:  # the first row and column are taken off
        row, rest = system[:, :1, 1:], system[:, 1:]
        pivot = torch.maximum(system[:, :1, :1], ridge)
        rows.append(row[:, :, -len(unit) :] / pivot.sqrt())
        system = rest[:, :, 1:] - rest[:, :, :1] * (row / pivot)
    return torch.cat(rows, dim=1).mT


def describe(weights: Path, network: Network) -> dict[str, str]:
    """Return what a user of an exported file needs to know."""
    record = read_record(weights) or {}
    bundled = any(weights.samefile(file) for file in bundled_weights().values())
    return {
        "task": network.task,
        "model": type(network).__name__,
        "sizes": json.dumps(network.sizes),
        "degradation": trained_for(record) if record else "",
        "licence": "MIT" if bundled else "",
        "data_licence": record.get("training", {}).get("licence", ""),
        "channels": str(network.channels),
        "multiple_of": str(network.multiple_of),
        "min_long_side": str(network.min_long_side),
        "padding": network.padding,
        "weights": weights.name,
        "weights_sha256": sha256(weights),
    }


def export(weights: Path, output: Path, precision: str = "float32") -> list[Path]:
    """Write the files of a network of any task, and return their paths: `output`, before whose
    suffix (.onnx, .pt2) comes that of a `Part`. With `precision` float16 the convolutions are so,
    and what lies between them; input, output, images and the projection are float32.

    Raises `InputError` as `load_model`, for another suffix or precision, and without onnx."""
    if output.suffix not in SUFFIXES:
        raise InputError(f"{output}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    network, _ = load_model(weights)
    says = describe(weights, network) | {"precision": precision}
    if precision != "float32":
        network = optimize_for_inference(network, PRECISIONS[precision])
    save = save_onnx if output.suffix == ".onnx" else save_pt2
    paths = []
    with torch.no_grad():
        for part in parts(network):
            path = output.with_name(f"{output.stem}{part.suffix}{output.suffix}")
            save(path, part, says)
            paths.append(path)
    return paths


def save_onnx(path: Path, part: Part, says: Mapping[str, str]) -> None:
    """Write a part of a network as ONNX. Raises `InputError` where the library is missing."""
    try:
        from onnxscript import opset18
    except ImportError as error:
        text = f"{path}: needs onnx and onnxscript: pip install 'dgunet[export]'"
        raise InputError(text) from error
    with PortableOperators():
        program = traced(part)

    def slice_scatter(whole, part, dim: int = 0, start: int = 0, end: int = 0, step: int = 1):
        """Writing over the first channels, as a concatenation: runtimes do that much faster."""
        if start or step != 1:
            raise NotImplementedError(f"slice_scatter from {start} in steps of {step}")
        rest = opset18.Slice(whole, [end], [torch.iinfo(torch.int64).max], [dim])
        return opset18.Concat(part, rest, axis=dim)

    model = torch.onnx.export(
        program,
        input_names=[part.given],
        output_names=part.returned,
        opset_version=OPSET,
        custom_translation_table={torch.ops.aten.slice_scatter.default: slice_scatter},
        dynamo=True,
        verbose=False,
    ).model_proto
    for item in (*model.graph.node, *model.graph.value_info):
        item.ClearField("metadata_props")  # where in the code it comes from: a quarter of the file
    for key, value in says.items():
        model.metadata_props.add(key=key, value=value)
    write_atomically(path, lambda file: file.write(model.SerializeToString()))


def save_pt2(path: Path, part: Part, says: Mapping[str, str]) -> None:
    """Write a part of a network for `torch.export.load`, its metadata as `metadata.json`."""
    program, files = traced(part), {"metadata.json": json.dumps(says, indent=1)}
    write_atomically(path, lambda file: torch.export.save(program, file, extra_files=files))


def traced(part: Part) -> torch.export.ExportedProgram:
    """Return a part's graph, for any batch, height and width."""
    batch, height, width = (
        torch.export.Dim(name, min=least, max=LARGEST_SIDE)
        for name, least in (("batch", 1), ("height", 2), ("width", 2))
    )
    shape = {0: batch, 2: part.multiple_of * height, 3: part.multiple_of * width}
    example = (part.example,)
    return torch.export.export(part.module.eval(), example, dynamic_shapes=(shape,), strict=False)


def run(paths: list[Path], image: Tensor) -> list[Tensor]:
    """Return what exported files, as `export` returned them, make of an image (N×C×H×W of a size
    that the network takes): the stage images, first to last."""
    values = (image,)
    for path in paths:
        if path.suffix == ".onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            name = session.get_inputs()[0].name
            values = session.run(None, {name: values[0].numpy()})
            values = tuple(map(torch.from_numpy, values))
        else:
            made = torch.export.load(path).module()(values[0])
            values = (made,) if isinstance(made, Tensor) else made
    return list(values)


@torch.inference_mode()
def check(weights: Path, paths: list[Path], photo: Path) -> str:
    """Restore the middle of a photograph, by exported files and by PyTorch in float32, and return
    the difference in words."""
    network, _ = load_model(weights)
    pixels = read_rgb(photo) if network.channels == 3 else read_gray(photo)
    step = network.multiple_of
    size = [min(side, CHECKED_SIDE) // step * step for side in pixels.shape[:2]]
    image = to_tensor(middle(pixels, *size))[None]
    difference = run(paths, image)[-1] - network(image)[0]
    largest, squared = difference.abs().max().item(), difference.square().mean().item()
    height, width = image.shape[2:]
    return (
        f"{photo}, {height}×{width} in the middle: largest difference from PyTorch {largest:.1e} "
        f"({255 * largest:.3f} of 255), root mean square {squared**0.5:.1e}"
    )


@command
def main() -> None:
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("weights", metavar="WEIGHTS", help="a checkpoint, or the name of bundled weights")
    add("-o", "--output", type=Path, required=True, metavar="FILE", help=" or ".join(SUFFIXES))
    text = "of the convolutions (default: %(default)s)"
    add("--precision", choices=PRECISIONS, default="float32", help=text)
    add("--check", type=Path, metavar="IMAGE", help="compare with PyTorch on this photograph")
    options = parser.parse_args()
    weights = find_weights(options.weights)
    paths = export(weights, options.output, options.precision)
    for path in paths:
        print(f"{path}: {path.stat().st_size:,} bytes")
    if options.check:
        print(check(weights, paths, options.check))


if __name__ == "__main__":
    main()
