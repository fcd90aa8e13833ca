"""The one registry of tasks: their names, models and default weights.

A model's `config` names its entry here, so that a checkpoint leads back to its code.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType

from dgunet.base.errors import InputError
from dgunet.model.network import Network

MODELS = ("DGUNet", "DGUNet_plus")
TASKS: Mapping[str, str] = {  # task, the name of its folder → bundled weights used by default
    "Deblurring": "mixed_blur",
    "Deraining": "mixed_rain",
    "Denoising": "blind",
    "Compressive_Sensing": "DGUNet_25",
}


def model_class(task: str, model: str = "DGUNet") -> type[Network]:
    """Return the class of a task's model. Raises `InputError` for an unknown task or model."""
    if not isinstance(task, str) or task not in TASKS:
        raise InputError(f"unknown task {task!r}, expected one of {', '.join(TASKS)}")
    if model not in MODELS:
        raise InputError(f"unknown model {model!r}, expected one of {', '.join(MODELS)}")
    return getattr(task_module(task, "DGUNet"), model)


def build_model(
    task: str, model: str = "DGUNet", sizes: Mapping[str, int] | None = None
) -> Network:
    """Build a task's model with fresh weights; without sizes the published one. Raises `InputError`
    for an unknown task, model or size, or a size that makes no network.

    >>> build_model("Deraining", "DGUNet", {"width": 8, "width_step": 4}).config["sizes"]
    {'width': 8, 'width_step': 4, 'last_extra': 16, 'stages': 7}
    """
    network = model_class(task, model)
    try:
        return network(**(sizes or {}))
    except (TypeError, ValueError) as error:
        raise InputError(f"{task} {model}: {error}") from error


def task_folder(task: str) -> Path:
    """Return the folder of a task, which holds its recipes and its pretrained weights: beside
    `dgunet` in a checkout, inside it where the package is installed."""
    return Path(import_module(f"dgunet.{task}").__path__[0])


def task_module(task: str, name: str) -> ModuleType:
    """Return a module of a task's folder, such as its "train"."""
    return import_module(f"dgunet.{task}.{name}")
