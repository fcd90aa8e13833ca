"""The configuration of a training run: defaults, YAML file, command line.

The published YAML files work as they are; keys that they lack have the defaults below or, where the
task's recipe differs, those its train.py names. `--opts KEY VALUE …` overrides both.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from yacs.config import CfgNode

from restoration.errors import InputError
from restoration.tasks import MODELS

DEFAULTS = {
    "GPU": [0],  # ids of the GPUs, for nn.DataParallel if several; [] for the CPU
    "VERBOSE": True,  # a progress bar
    "SEED": 1234,
    "MODEL": {
        "MODE": "",  # the task, the name of a folder under SAVE_DIR
        "SESSION": "DGUNet",  # the run, the name of a folder under SAVE_DIR/MODE/models
        "NAME": "DGUNet",  # or DGUNet_plus
        "WIDTH": -1,  # -1: the published size, here and in the next three
        "WIDTH_STEP": -1,
        "LAST_EXTRA": -1,
        "STAGES": -1,
        "CS_RATIO": 25,  # compressive sensing: percent measured
        "WEIGHTS": "",  # a checkpoint to start from, with a fresh optimizer
        "ZERO_IMAGE_CONVOLUTIONS": False,  # every stage begins as its gradient step
    },
    "OPTIM": {
        "BATCH_SIZE": 16,  # over all GPUs and accumulation steps together
        "NUM_EPOCHS": 250,
        "LR_INITIAL": 2e-4,
        "LR_MIN": 1e-6,
        "WARMUP_EPOCHS": 3,
        "COSINE_EXTRA_EPOCHS": 0,  # the cosine is longer by these than the epochs after the warm-up
        "WEIGHT_DECAY": 0.0,
        "ACCUMULATE": 1,  # a batch is worked off in as many parts
        "CLIP_GRAD": 0.0,  # largest norm of the gradient; 0: any
        "EMA": 0.0,  # decay of a moving average of the weights, such as 0.999; 0: none
        "NEPOCH_DECAY": [100],  # without effect, as is
        "BETA1": 0.5,
    },
    "DATA": {
        "DEGRADATION": "",  # degrade photographs on the fly: gaussian25, gaussian0-50, a preset
        "GREY": False,
        "REPEATS": 1,  # crops an epoch takes of each image
        "MIXUP_AFTER": -1,  # mix pairs of a batch after this epoch; -1: never
    },
    "TRAINING": {
        "VAL_AFTER_EVERY": 1,  # validate every so many epochs
        "VAL_EPOCHS": [],  # if given: in these epochs instead, and in all after VAL_ALWAYS_AFTER
        "VAL_ALWAYS_AFTER": 0,
        "VAL_TIMES": 1,  # so many times in an epoch
        "RESUME": False,
        "TRAIN_PS": 256,
        "VAL_PS": 256,
        "TRAIN_DIR": "",
        "VAL_DIR": "",  # empty: no validation
        "SAVE_DIR": "./checkpoints",
        "SAVE_IMAGES": False,  # without effect
        "SAVE_MINUTES": 10.0,  # within an epoch, save the latest state every so often
        "WORKERS": 4,
        "SKIP_CORRUPT": False,  # leave out images that cannot be read
        "PRECISION": "float32",  # or bf16, fp16: automatic mixed precision
        "CHANNELS_LAST": False,
        "COMPILE": False,  # torch.compile
    },
}
PATHS = ("MODEL.WEIGHTS", "TRAINING.TRAIN_DIR", "TRAINING.VAL_DIR", "TRAINING.SAVE_DIR")
PRECISIONS = ("float32", "bf16", "fp16")
TYPES = {"str": "text", "bool": "True or False", "int": "a whole number", "float": "a number"}


def load_config(
    file: str | os.PathLike, opts: Sequence[str] = (), recipe: Mapping[str, object] | None = None
) -> CfgNode:
    """Read a YAML configuration file.

    Args:
        file: relative paths in it are relative to its folder.
        opts: keys and values in turn, such as ["OPTIM.BATCH_SIZE", "4"]; relative paths in them are
            relative to the current folder.
        recipe: dotted keys and values that replace the defaults.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is no YAML, a key is unknown, or a value is of the wrong type, out of
            range or a path that does not exist. The message names key, value and file (or --opts).
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such configuration file")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not a YAML file ({' '.join(str(error).split())})") from error
    if content is not None and not isinstance(content, Mapping):
        raise InputError(f"{file}: holds a {type(content).__name__}, expected keys and values")
    if len(opts) % 2:
        raise InputError(f"--opts: {opts[-1]!r} has no value, expected KEY VALUE pairs")

    config = CfgNode(plain(DEFAULTS))
    sources = {}  # key → who set it, to be named where the value turns out to be unusable
    for key, value in (recipe or {}).items():
        _set(config, key, value, "recipe")
    for key, value in _flatten(content or {}, file):
        _set(config, key, value, file, base=file.parent)
        sources[key] = file
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        _set(config, key, value, "--opts", base=Path.cwd())
        sources[key] = "--opts"
    config.TRAINING.SAVE_DIR = _absolute(config.TRAINING.SAVE_DIR, file.parent)
    _check(config, sources, file)
    return config


def model_sizes(config: CfgNode) -> dict[str, int]:
    """Return the sizes that the configuration sets, as `build_model` takes them."""
    names = ("WIDTH", "WIDTH_STEP", "LAST_EXTRA", "STAGES")
    return {name.lower(): config.MODEL[name] for name in names if config.MODEL[name] != -1}


def plain(config: Mapping) -> dict:
    """Return a configuration as a copy of plain dicts, which a checkpoint can hold."""
    return {k: plain(v) if isinstance(v, Mapping) else v for k, v in config.items()}


def changes(before: Mapping, after: Mapping) -> list[str]:
    """Return what differs between two configurations, such as "OPTIM.BATCH_SIZE 16 → 8".

    >>> changes({"SEED": 1, "OPTIM": {"EMA": 0.0}}, {"SEED": 1, "OPTIM": {"EMA": 0.9}})
    ['OPTIM.EMA 0.0 → 0.9']
    """
    old, new = dict(_leaves(before)), dict(_leaves(after))
    return [f"{k} {old.get(k)!r} → {new[k]!r}" for k in new if k not in old or old[k] != new[k]]


def _leaves(node: Mapping, prefix: str = ""):
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _flatten(content: Mapping, file: Path):
    """Yield (dotted key, value) of a YAML file; what is no known section is left whole."""
    for name, value in content.items():
        if not isinstance(DEFAULTS.get(name), dict):
            yield str(name), value
        elif isinstance(value, Mapping):
            yield from ((f"{name}.{key}", inner) for key, inner in value.items())
        else:
            raise InputError(f"{file}: {name} is {value!r}, expected a section of keys")


def _set(config: CfgNode, key: str, value, source, base: Path | None = None) -> None:
    node, _, name = key.rpartition(".")
    section = config.get(node) if node else config
    if not isinstance(section, CfgNode) or isinstance(section.get(name, section), CfgNode):
        raise InputError(f"{source}: unknown key {key}{_similar(key)}")
    default, given = section[name], value
    if isinstance(value, str):  # as yacs reads 1e-4, which is a string to YAML, and [0,1]
        value = CfgNode._decode_cfg_value(value)
    if isinstance(default, str):
        value = "" if value is None else value if isinstance(value, str) else given
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if isinstance(default, list) and (type(value) is int or isinstance(value, tuple)):
        value = list(value) if isinstance(value, tuple) else [value]
    if type(value) is not type(default):
        wanted = type(default).__name__
        raise InputError(f"{source}: {key} is {given!r}, expected {TYPES.get(wanted, 'a list')}")
    section[name] = _absolute(value, base) if key in PATHS and base else value


def _similar(key: str) -> str:
    from difflib import get_close_matches

    known = [name for name, _ in _leaves(DEFAULTS)]
    matches = get_close_matches(key, known, 1)
    return f", did you mean {matches[0]}?" if matches else ""


def _absolute(path: str, base: Path) -> str:
    return os.path.abspath(base / os.path.expanduser(path)) if path else path


def _check(config: CfgNode, sources: Mapping, file: Path) -> None:
    def require(key: str, holds, expected: str) -> None:
        section, _, name = key.rpartition(".")
        value = config[section][name] if section else config[name]
        if not holds(value):
            raise InputError(f"{sources.get(key, file)}: {key} is {value!r}, expected {expected}")

    def numbers(least: int):
        return lambda values: all(type(v) is int and v >= least for v in values)

    require("GPU", numbers(0), "a list of GPU numbers")
    require("GPU", lambda v: len(set(v)) == len(v), "each GPU once")
    require("TRAINING.VAL_EPOCHS", numbers(1), "a list of epochs, from 1")
    for key in ("MODEL.MODE", "MODEL.SESSION"):
        require(key, lambda v: Path(v).name == v and v != "..", "a folder's name")
    require("MODEL.SESSION", bool, "a folder's name")
    require("MODEL.NAME", lambda v: v in MODELS, f"one of {', '.join(MODELS)}")
    require("SEED", lambda v: v >= 0, "0 or more")
    for key in ("OPTIM.BATCH_SIZE", "OPTIM.NUM_EPOCHS", "OPTIM.ACCUMULATE", "DATA.REPEATS"):
        require(key, lambda v: v > 0, "at least 1")
    for key in ("TRAINING.VAL_AFTER_EVERY", "TRAINING.VAL_TIMES"):
        require(key, lambda v: v > 0, "at least 1")
    for key in ("OPTIM.WARMUP_EPOCHS", "OPTIM.COSINE_EXTRA_EPOCHS", "TRAINING.WORKERS"):
        require(key, lambda v: v >= 0, "0 or more")
    for key in ("OPTIM.LR_MIN", "OPTIM.WEIGHT_DECAY", "OPTIM.CLIP_GRAD"):
        require(key, lambda v: 0 <= v < math.inf, "0 or more")
    require("OPTIM.LR_INITIAL", lambda v: 0 < v < math.inf, "above 0")
    require("OPTIM.EMA", lambda v: 0 <= v < 1, "from 0 to below 1")
    require("TRAINING.SAVE_MINUTES", lambda v: v > 0, "above 0")
    require("TRAINING.PRECISION", lambda v: v in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
    for key in ("TRAINING.TRAIN_PS", "TRAINING.VAL_PS"):
        require(key, lambda v: v >= 16 and v % 8 == 0, "a multiple of 8, at least 16")
    require("TRAINING.TRAIN_DIR", bool, "a data folder (--opts TRAINING.TRAIN_DIR FOLDER)")
    require("TRAINING.TRAIN_DIR", os.path.exists, "a data folder or packed file that exists")
    require(
        "TRAINING.VAL_DIR",
        lambda v: not v or os.path.exists(v),
        "a data folder or packed file that exists, or '' to train without validation",
    )
    require("MODEL.WEIGHTS", lambda v: not v or os.path.isfile(v), "a file that exists")
