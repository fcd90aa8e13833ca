"""The options of `Restorer` on the command line, the same in every program that restores."""

from __future__ import annotations

import argparse
import inspect

from dgunet.inference.optimize import COMPILE_MODES, PRECISIONS
from dgunet.inference.restorer import TILE_OVERLAP, Restorer

WINDOW = 384  # of local statistics: 1.5 times the patch of 256 that most recipes train on


def add_restorer_options(
    parser: argparse.ArgumentParser, tile: int | str = "auto", tile_overlap: int = TILE_OVERLAP
) -> None:
    """Add the options; `tile` and `tile_overlap` are their defaults."""
    add = parser.add_argument
    text = "largest side of the tiles of a large image; 0: no tiles; auto: as the memory allows"
    add("--tile", type=_tile, default=tile, metavar="auto|N|0", help=f"{text} (%(default)s)")
    text = "pixels that tiles share (%(default)s)"
    add("--tile_overlap", type=int, default=tile_overlap, metavar="N", help=text)
    text = "mean over the eight flips and turns of the image: better, eight times the work"
    add("--self_ensemble", action="store_true", help=text)
    text = f"take the network's statistics from windows of N pixels ({WINDOW}), as TLC does"
    add("--local_statistics", type=int, nargs="?", const=WINDOW, default=0, metavar="N", help=text)
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (auto: the best there is)")
    add("--precision", choices=PRECISIONS, default="float32", help="(%(default)s)")
    text = "torch.compile: minutes for every size of image or tile, and faster from then on; "
    text += "reduce-overhead: with CUDA graphs (on a GPU, for tiles of one size)"
    add("--compile", nargs="?", const="default", default=False, choices=COMPILE_MODES, help=text)


def restorer_options(options: argparse.Namespace) -> dict:
    """Return what was given, as keyword arguments for `Restorer`."""
    names = inspect.signature(Restorer).parameters
    return {name: value for name, value in vars(options).items() if name in names}


def _tile(text: str) -> int | str:
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; expected auto, or pixels") from None
