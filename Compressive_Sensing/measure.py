"""Measure an image: every 32×32 block b becomes y = Φ b, with the Φ of the weights.

    python measure.py IMAGE -o FILE.npz --weights WEIGHTS
    python measure.py IMAGE -o FILE.npz --noise 5 --bits 8     as a sensor, or a codec, would
    python measure.py --export_phi PHI.npy                     Φ alone, m×1024, float32

reconstruct.py makes the image again from the file and the weights alone. Of a colour image Y is
measured (OpenCV's YCrCb, as in testing); with --color each of R, G and B.

The file is a NumPy archive (.npz) without pickles:

    version       1
    y             planes×m×⌈H/32⌉×⌈W/32⌉, float32; with --bits, whole numbers for offset + step·y
    offset, step  m each, float32, only with --bits: every row of Φ has a range of its own
    ratio         percent measured, m = ⌈1024·ratio/100⌉
    height, width of the image; blocks that jut out at the right and bottom are filled with zeros
    phi           which Φ: the first 16 hexadecimal digits of the SHA-256 of its float32 bytes
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path

from dgunet.base.errors import InputError, command, printable  # first: Ctrl-C then ends in a line
from dgunet.base.options import new_parser

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dgunet.base.files import regular_file, write_atomically
from dgunet.base.memory import require_memory
from dgunet.Compressive_Sensing.DGUNet import BLOCK, TASK, DGUNet
from dgunet.images.files import read_gray, read_rgb, to_tensor
from dgunet.inference.device import pick_device
from dgunet.model.checkpoint import load_model

VERSION = 1
RATIO = 25  # percent, where none is given
FIELDS = ("version", "y", "ratio", "height", "width", "phi")
QUANTIZED = ("offset", "step")  # the further fields with --bits
_LARGEST_FIELD = 2**16  # bytes, but of y
_READING = 8  # bytes in memory for a byte of y: unpacked, copied and as float32


@dataclass(frozen=True)
class Measurements:
    """What a measurement file says; y is float32, however it was stored."""

    y: Tensor
    ratio: int
    height: int
    width: int
    phi: str


def phi_identifier(network: DGUNet) -> str:
    """Return the 16 digits by which a measurement file tells the network's Φ from others."""
    phi = network.A.Phi.detach().float().cpu().numpy()
    return hashlib.sha256(phi.astype("<f4").tobytes()).hexdigest()[:16]


@torch.inference_mode()
def measure(network: DGUNet, image: Tensor, noise: float = 0.0, seed: int = 0) -> Measurements:
    """Measure an image of any size.

    Args:
        image: C×H×W in [0,1], every channel measured on its own.
        noise: standard deviation of Gaussian noise added to every measurement, in grey levels
            (1/255; with orthonormal rows of Φ, what the same noise on the pixels would add).
    """
    height, width = image.shape[-2:]
    padded = F.pad(image[:, None], (0, -width % BLOCK, 0, -height % BLOCK))
    y = network.measure(padded.to(network.A.Phi.device)).cpu()
    if noise:
        generator = torch.Generator().manual_seed(seed)
        y = y + noise / 255 * torch.randn(y.shape, generator=generator)
    return Measurements(y, network.sizes["cs_ratio"], height, width, phi_identifier(network))


def quantize(y: Tensor, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return whole numbers of so many bits, 1 … 16, and `offset` and `step` of each row of Φ, such
    that offset + step·number is nearest to y, planes×m×h×w."""
    y = y.double().numpy()
    offset, top = y.min((0, 2, 3)), y.max((0, 2, 3))
    offset, step = offset.astype(np.float32), ((top - offset) / (2**bits - 1)).astype(np.float32)
    step[step == 0] = 1
    numbers = np.rint((y - _by_row(offset)) / _by_row(step)).clip(0, 2**bits - 1)
    return numbers.astype(np.uint8 if bits <= 8 else np.uint16), offset, step


def write_measurements(path: str | Path, measurements: Measurements, bits: int = 0) -> None:
    """Write a measurement file, whole or not at all; quantized to `bits`, if any."""
    fields = {name: getattr(measurements, name) for name in ("ratio", "height", "width", "phi")}
    if bits:
        fields["y"], fields["offset"], fields["step"] = quantize(measurements.y, bits)
    else:
        fields["y"] = measurements.y.numpy()
    save = np.savez_compressed if bits else np.savez
    write_atomically(path, lambda file: save(file, version=VERSION, **fields))


def read_measurements(path: str | Path) -> Measurements:
    """Read a measurement file. Nothing in it is executed. Raises `InputError` if it is damaged or
    no measurement file, its fields do not fit together, or its values are not finite."""
    path = regular_file(path, "a measurement file")
    try:
        fields = _read_fields(path)
    except Exception as error:  # a damaged archive can raise nearly anything
        reason = printable(error) or type(error).__name__
        raise InputError(f"{path}: not a readable measurement file ({reason})") from error
    if missing := [name for name in FIELDS if name not in fields]:
        raise InputError(f"{path}: holds no {', '.join(missing)}; expected {', '.join(FIELDS)}")

    def number(name: str, holds, expected: str) -> int:
        value = fields[name]
        if value.shape or value.dtype.kind not in "iu" or not holds(int(value)):
            raise InputError(f"{path}: {name} is {printable(value)}, expected {expected}")
        return int(value)

    number("version", lambda v: v == VERSION, f"{VERSION}")
    ratio = number("ratio", lambda v: 1 <= v <= 100, "a percentage, 1 to 100")
    height, width = (
        number(side, lambda v: v > 0, "a whole number, 1 or more") for side in ("height", "width")
    )
    y, m = fields["y"], -(-(BLOCK**2) * ratio // 100)
    wanted = (m, -(-height // BLOCK), -(-width // BLOCK))
    if y.ndim != 4 or y.shape[0] not in (1, 3) or y.shape[1:] != wanted:
        raise InputError(
            f"{path}: y is {_by(y.shape)}, expected {_by((1, *wanted))} (or 3×…) for ratio {ratio} "
            f"and {height}×{width} pixels"
        )
    if y.dtype.kind in "iu":
        ranges = [fields.get(name, np.empty(0)) for name in ("offset", "step")]
        if any(r.shape != (m,) or r.dtype.kind != "f" for r in ranges):
            raise InputError(f"{path}: y is {y.dtype}, expected {m} values of offset and of step")
        y = _by_row(ranges[0]) + _by_row(ranges[1]) * y
    elif y.dtype.kind != "f":
        raise InputError(f"{path}: y is {y.dtype}, expected numbers")
    with np.errstate(over="ignore"):  # becomes infinite
        y = torch.from_numpy(y.astype(np.float32))
    if broken := int((~y.isfinite()).sum()):
        raise InputError(f"{path}: {broken} of the {y.numel()} measurements are not finite")
    return Measurements(y, ratio, height, width, printable(fields["phi"]))


def _read_fields(path: Path) -> dict[str, np.ndarray]:
    """Return the known fields of a measurement file. Others are not unpacked, and none before its
    size is known: few bytes may unpack to any number."""
    fields = {}
    with np.load(path, allow_pickle=False) as archive:
        for name in {*FIELDS, *QUANTIZED}.intersection(archive.files):
            size = archive.zip.getinfo(f"{name}.npy").file_size
            if size > _LARGEST_FIELD and name != "y":
                raise ValueError(f"{name} has {size:,} bytes")
            require_memory(_READING * size, f"{path}: {name} of {size:,} bytes")
            fields[name] = np.asarray(archive[name])  # of what is no array: its bytes
    return fields


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Add what `load_network` takes."""
    text = "an own or a published checkpoint, or the name of bundled weights (default: bundled)"
    parser.add_argument("--weights", metavar="FILE", help=text)
    text = "auto, cpu, cuda, cuda:N or mps (default: the best)"
    parser.add_argument("--device", default="auto", help=text)


def load_network(options: argparse.Namespace, ratio: int = RATIO) -> DGUNet:
    """Load `options.weights`, or the bundled ones of a ratio, onto `options.device`."""
    network, _ = load_model(options.weights or bundled_weights(ratio), TASK)
    return network.to(pick_device(options.device))


def bundled_weights(ratio: int) -> str:
    """Return the name of the bundled weights of a ratio, in percent."""
    return f"DGUNet_{ratio}"


def _by_row(values: np.ndarray) -> np.ndarray:
    return values[:, None, None]


def _by(shape: tuple) -> str:
    return "×".join(map(str, shape))


@command
def main() -> None:
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("image", nargs="?", type=Path, metavar="IMAGE", help="any format, any size")
    add("-o", "--output", type=Path, metavar="FILE", help="the measurement file, .npz")
    add_network_options(parser)
    add("--color", action="store_true", help="measure R, G and B, not Y")
    add("--noise", type=float, default=0.0, metavar="SIGMA", help="Gaussian noise, σ of 255")
    add("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    add("--bits", type=int, default=0, metavar="N", help="quantize to 1 … 16 bits")
    add("--export_phi", type=Path, metavar="FILE", help="write Φ as .npy")
    options = parser.parse_args()
    if bool(options.image) != bool(options.output) or not (options.image or options.export_phi):
        raise InputError("expected IMAGE -o FILE, or --export_phi FILE, or both")
    if not 0 <= options.noise <= 1e9:
        raise InputError(f"--noise is {options.noise}; expected 0 to 1e9")
    if not 0 <= options.seed < 2**63:
        raise InputError(f"--seed is {options.seed}; expected 0 or more, below 2⁶³")
    for file, suffix in ((options.output, ".npz"), (options.export_phi, ".npy")):
        if file and file.suffix.lower() != suffix:
            raise InputError(f"{file}: would not be called what it is; expected a name in {suffix}")
    if not 0 <= options.bits <= 16:
        raise InputError(f"--bits is {options.bits}; expected 1 to 16, or 0 for float32")
    network = load_network(options)
    if options.export_phi:
        phi = network.A.Phi.detach().cpu().numpy()
        write_atomically(options.export_phi, lambda file: np.save(file, phi))
        print(f"{options.export_phi}: Φ {phi_identifier(network)}, {_by(phi.shape)}")
    if options.image:
        pixels = read_rgb(options.image) if options.color else read_gray(options.image)
        measurements = measure(network, to_tensor(pixels), options.noise, options.seed)
        write_measurements(options.output, measurements, options.bits)
        print(
            f"{options.output}: {measurements.y.numel():,} measurements of {pixels.size:,} values, "
            f"ratio {measurements.ratio} %, Φ {measurements.phi}, "
            f"{options.output.stat().st_size:,} bytes"
        )


if __name__ == "__main__":
    main()
