"""Deep generalized unfolding networks (DGUNet, CVPR 2022) for image restoration.

    from dgunet import Restorer
    restorer = Restorer.from_checkpoint("small_gaussian25")  # bundled weights, or a file
    restored = restorer(image)  # NumPy array or tensor, of any size

The rooms; the first line of each says what belongs there. Imports point from left to right:

    tools → scoring → inference → model → images → base
    training → inference, model, data; data → images

In a checkout the task folders lie beside this package, in the installed wheel inside it. In both
they are `dgunet.Deblurring`, `dgunet.Deraining`, `dgunet.Denoising`, `dgunet.Compressive_Sensing`.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from dgunet.base.errors import end_interrupted_imports_in_a_line

if TYPE_CHECKING:
    from dgunet.inference.optimize import optimize_for_inference
    from dgunet.inference.restorer import Restorer
    from dgunet.model.checkpoint import load_model, load_weights
    from dgunet.model.published_format import published_state_dict
    from dgunet.model.registry import build_model

_PUBLIC = {  # name → module; imported when first used, so that `import dgunet` is quick
    "Restorer": "dgunet.inference.restorer",
    "build_model": "dgunet.model.registry",
    "load_model": "dgunet.model.checkpoint",
    "load_weights": "dgunet.model.checkpoint",
    "optimize_for_inference": "dgunet.inference.optimize",
    "published_state_dict": "dgunet.model.published_format",
}
__all__ = [
    "Restorer",
    "build_model",
    "load_model",
    "load_weights",
    "optimize_for_inference",
    "published_state_dict",
]

_CHECKOUT = Path(__file__).resolve().parents[1]
if (_CHECKOUT / "Deraining" / "DGUNet.py").is_file():
    __path__.append(str(_CHECKOUT))

# Only in our programs: `python -m dgunet.…`, `dgunet`, and those of the checkout.
_PROGRAM = Path(sys.argv[0]).resolve() if sys.argv else Path()
if "-m" in sys.argv[:1] or _PROGRAM.name == "dgunet" or _CHECKOUT in _PROGRAM.parents:
    end_interrupted_imports_in_a_line()


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
