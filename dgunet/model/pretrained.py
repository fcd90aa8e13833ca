"""The bundled pretrained weights: which file is a task's default, and what each is for.

They lie in `<task>/pretrained_models`, a safetensors file and a JSON record each.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from natsort import natsorted

from dgunet.base.errors import InputError, printable
from dgunet.base.files import read_json
from dgunet.images.noise import noise_range
from dgunet.model.registry import TASKS, task_folder

TEXTURE = 10.0  # σ of 255 that a photograph without noise may seem to have
PUBLISHED_WEIGHTS = (  # where the paper's authors offer theirs
    "https://github.com/MC-E/Deep-Generalized-Unfolding-Networks-for-Image-Restoration"
)


def default_weights(task: str) -> Path:
    """Return the file of a task's default weights. Raises `FileNotFoundError` where this
    installation lacks it."""
    path = task_folder(task) / "pretrained_models" / f"{TASKS[task]}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {task}'s default weights are not there")
    return path


def bundled_weights() -> dict[str, Path]:
    """Return {name: file} of all bundled weights, by task."""
    folders = [task_folder(task) / "pretrained_models" for task in TASKS]
    files = [file for folder in folders for file in natsorted(folder.glob("*.safetensors"))]
    return {file.stem: file for file in files}


def find_weights(name: str | os.PathLike) -> Path:
    """Return the file that a path, or the name of bundled weights, stands for. A path to what does
    not exist is returned as it is. Raises `InputError` for a bare name without suffix that no
    bundled weights have.

    >>> find_weights("small_gaussian25").name
    'small_gaussian25.safetensors'
    """
    path = Path(name)
    if path.exists() or path.name != str(name) or path.suffix:
        return path
    bundled = bundled_weights()
    if path.name not in bundled:
        known = ", ".join(bundled) or "none"
        raise InputError(f"{name}: neither a file nor bundled weights; bundled are: {known}")
    return bundled[path.name]


def read_record(weights: str | Path) -> dict | None:
    """Return the JSON record beside a file of weights, None where there is none of this project."""
    try:
        record = read_json(Path(weights).with_suffix(".json"))
    except (OSError, InputError):  # others may keep what they like there
        return None
    if isinstance(record, dict) and (degradation_of(record) or "cs_ratio" in record):
        return record
    return None


def degradation_of(record: Mapping) -> str | None:
    """Return the degradation that a record names, such as a preset of
    `dgunet.data.degradations`."""
    training = record.get("training")
    degradation = training.get("degradation") if isinstance(training, Mapping) else None
    return degradation if isinstance(degradation, str) else None


def trained_for(record: Mapping) -> str:
    """Return in words what weights were trained for, as their record says.

    >>> trained_for({"trained_for": "Gaussian noise, σ = 25 of 255"})
    'Gaussian noise, σ = 25 of 255'
    >>> trained_for({"cs_ratio": 10})
    'compressive sensing ratio 10 %'
    """
    if "cs_ratio" in record:
        return f"compressive sensing ratio {printable(record['cs_ratio'])} %"
    return printable(record.get("trained_for") or degradation_of(record))


def trained_noise(record: Mapping) -> tuple[float, float] | None:
    """Return the range of σ, of 255, of the Gaussian noise that weights were trained on; None where
    the record does not say, or names another noise.

    >>> trained_noise({"training": {"degradation": "gaussian0-50"}})
    (0.0, 50.0)
    >>> trained_noise({"training": {"degradation": "rain_light+rain_heavy+clean"}})
    (0.0, 0.0)
    """
    levels: list[float] = []
    for name in (degradation_of(record) or "unknown").split("+"):
        noise = noise_range(name)
        if not noise and not re.fullmatch("clean|(?:blur|rain)_.*", name):
            return None
        levels += noise or (0.0,)
    return min(levels), max(levels)


def fits(record: Mapping, noise: float) -> bool:
    """Tell whether noise of σ (of 255, as `dgunet.images.noise.noise_level` estimates it) is like
    that of the images which the weights were trained on. True where the record does not say."""
    trained = trained_noise(record)
    return not trained or 2 / 3 * trained[0] <= noise <= max(4 / 3 * trained[1], TEXTURE)


def advice(record: Mapping, noise: float) -> str:
    """Return what to do with an image whose noise does not fit the weights."""
    for name, file in bundled_weights().items():
        other = read_record(file)
        if other and other.get("task") == "Denoising" and fits(other, noise):
            same = record.get("task") == "Denoising"
            return f"use --weights {name}" if same else f"denoise it first, --weights {name}"
    if noise < (trained_noise(record) or (0.0,))[0]:
        return "it may need no denoising"
    return "no bundled weights are for such noise"
