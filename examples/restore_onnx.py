"""Restore a photograph without PyTorch: onnxruntime, NumPy and Pillow are all that it needs.

    python restore_onnx.py photo.jpg -o restored.png --model denoiser.onnx
    python restore_onnx.py photo.jpg -o restored.png --model cs_measure.onnx cs_reconstruct.onnx

`python -m dgunet.tools.export` makes the models. Large photographs are restored in tiles that
overlap and are blended, as the command `dgunet` does with the same --tile; the result is the same
up to rounding.
"""

import argparse
from collections.abc import Iterator

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

OVERLAP = 64  # pixels that neighbouring tiles share at least


class Network:
    """One exported file, or two of which the second takes what the first returns."""

    def __init__(self, files: list[str], threads: int = 0):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        providers = onnxruntime.get_available_providers()
        self.sessions = [onnxruntime.InferenceSession(f, options, providers) for f in files]
        says = self.sessions[0].get_modelmeta().custom_metadata_map
        self.channels, self.multiple_of = int(says["channels"]), int(says["multiple_of"])
        self.min_long_side, self.padding = int(says["min_long_side"]), says["padding"]

    def __call__(self, tile: np.ndarray, height: int = 0, width: int = 0) -> np.ndarray:
        """Restore N×C×h×w, padded at the bottom and right to what the network takes, at least to
        `height`×`width`; the result is cropped to h×w."""
        h, w = tile.shape[2:]
        padded = [
            -(-max(a, b) // self.multiple_of) * self.multiple_of
            for a, b in ((h, height), (w, width))
        ]
        if max(padded) < self.min_long_side:
            padded = [self.min_long_side, self.min_long_side]
        mode = "reflect" if self.padding == "reflect" else "constant"
        values = np.pad(tile, ((0, 0), (0, 0), (0, padded[0] - h), (0, padded[1] - w)), mode)
        for session in self.sessions:
            last = session.get_outputs()[-1].name  # of the stages, the last is the result
            (values,) = session.run([last], {session.get_inputs()[0].name: values})
        return values[:, :, :h, :w]


def spans(size: int, tile: int, multiple_of: int) -> Iterator[tuple[int, int, int, np.ndarray]]:
    """Cut an axis into evenly spaced tiles of one size that overlap. Yields start, stop, the size
    once padded and the weights of the tile's pixels, which add up to 1 over all tiles."""
    whole = -(-size // multiple_of) * multiple_of
    if size <= tile:
        yield 0, size, whole, np.ones(size, np.float32)
        return
    count = -(-(whole - OVERLAP) // (tile - OVERLAP))
    tile = -(-(whole + (count - 1) * OVERLAP) // (count * multiple_of)) * multiple_of
    starts = [i * (whole - tile) // (count - 1) // multiple_of * multiple_of for i in range(count)]
    place = (np.arange(OVERLAP) + 0.5) / OVERLAP  # outer quarters are thrown away
    rise = np.sin(np.pi / 2 * (2 * place - 0.5).clip(0, 1)).astype(np.float32) ** 2
    for i, start in enumerate(starts):
        weights = np.ones(tile, np.float32)
        if i > 0:
            begin = (start + starts[i - 1] + tile - OVERLAP) // 2 - start
            weights[:begin] = 0
            weights[begin : begin + OVERLAP] *= rise
        if i < count - 1:
            stop = min(start + tile, size)
            begin = (starts[i + 1] + stop - OVERLAP) // 2 - start
            weights[begin : begin + OVERLAP] *= 1 - rise
            weights[begin + OVERLAP :] = 0
        stop = min(start + tile, size)
        yield start, stop, tile, weights[: stop - start]


def restore(network: Network, pixels: np.ndarray, tile: int) -> np.ndarray:
    """Restore H×W×3 uint8 pixels."""
    degraded = pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255
    if network.channels == 1:
        degraded = degraded.transpose(1, 0, 2, 3)  # R, G and B each on its own
    restored = np.zeros_like(degraded)
    height, width = degraded.shape[2:]
    step = network.multiple_of
    tile = tile // step * step
    for top, bottom, padded_height, row in spans(height, tile, step):
        for left, right, padded_width, column in spans(width, tile, step):
            part = degraded[:, :, top:bottom, left:right]
            part = network(part, padded_height, padded_width)
            restored[:, :, top:bottom, left:right] += row[:, None] * column * part
    if network.channels == 1:
        restored = restored.transpose(1, 0, 2, 3)
    return np.rint(restored[0].transpose(1, 2, 0).clip(0, 1) * 255).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("image", metavar="IMAGE")
    add("-o", "--output", required=True, metavar="IMAGE", help="where to write")
    add("--model", nargs="+", required=True, metavar="FILE", help="one .onnx file, or two in turn")
    add("--tile", type=int, default=512, help="largest side of a tile (default: %(default)s)")
    add("--threads", type=int, default=0, help="of onnxruntime (default: all cores)")
    options = parser.parse_args()
    if options.tile < 3 * OVERLAP:
        parser.error(f"--tile is {options.tile}; expected at least {3 * OVERLAP}")
    with Image.open(options.image) as image:
        pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    restored = restore(Network(options.model, options.threads), pixels, options.tile)
    Image.fromarray(restored).save(options.output)


if __name__ == "__main__":
    main()
