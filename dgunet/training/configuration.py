"""The configuration of a training run: defaults, YAML file, command line.

The published YAML files work as they are; keys that they lack have the defaults below or, where the
task's recipe differs, those its train.py names. `--opts KEY VALUE …` overrides both.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml
from yacs.config import CfgNode

from dgunet.base.errors import InputError
from dgunet.base.folders import working_folder
from dgunet.model.network import SIZES
from dgunet.model.registry import MODELS

DEFAULTS = {
    "GPU": [0],  # ids of the GPUs, for nn.DataParallel if several; [] for the CPU
    "VERBOSE": True,  # a progress bar
    "SEED": 1234,
    "MODEL": {
        "MODE": "",  # the task, the name of a folder under SAVE_DIR
        # The run, the name of a folder under SAVE_DIR/MODE/models. {NAME} and {CS_RATIO}, here and
        # in WEIGHTS, stand for the values of those keys.
        "SESSION": "DGUNet",
        "NAME": "DGUNet",  # or DGUNet_plus
        "WIDTH": -1,  # -1: the published size, here and in the next three
        "WIDTH_STEP": -1,
        "LAST_EXTRA": -1,
        "STAGES": -1,
        "CS_RATIO": 25,  # compressive sensing: percent measured
        "WEIGHTS": "",  # a checkpoint to start from, with a fresh optimizer
        "ZERO_IMAGE_CONVOLUTIONS": False,  # every stage begins as its gradient step
        "BODY_WEIGHTS": "",  # compressive sensing: start from these, but for Φ: any ratio's
        "PHI_INIT": "",  # compressive sensing: pca, the principal components of the photographs
        "PHI": "",  # compressive sensing: a fixed Φ, not to be trained: a file .npy, m×1024
    },
    "OPTIM": {
        "BATCH_SIZE": 16,  # over all GPUs and accumulation steps together
        "NUM_EPOCHS": 250,
        "LR_INITIAL": 2e-4,
        "LR_MIN": 1e-6,
        "LR_BATCH": 0,  # LR_INITIAL and LR_MIN are for this batch; others: times √(BATCH_SIZE/it)
        "SCHEDULE": "cosine",  # to LR_MIN, after a warm-up; or constant
        "HALVE_AFTER": 0,  # constant: halve the rate after so many epochs; 0: never
        "WARMUP_EPOCHS": 3,
        "WARMUP_SHARE": 0.02,  # with TRAINING.MINUTES: of them, in place of WARMUP_EPOCHS
        "COSINE_EXTRA_EPOCHS": 0,  # the cosine is longer by these than the epochs after the warm-up
        "WEIGHT_DECAY": 0.0,
        "ACCUMULATE": 1,  # a batch is worked off in as many parts
        "CLIP_GRAD": 0.0,  # largest norm of the gradient; 0: any
        "FUSED": False,  # the optimizer's step as one kernel
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
        "VAL_TIMES": 1,  # so many times in an epoch; with MINUTES: at the start, and in them
        "MINUTES": 0.0,  # end after so many, whatever NUM_EPOCHS; the cosine ends then; 0: no limit
        "RESUME": False,
        "TRAIN_PS": 256,
        "VAL_PS": 256,
        "TRAIN_DIR": "",
        "VAL_DIR": "",  # empty: no validation
        "HOLD_OUT": 0,  # compressive sensing: train without so many images, and validate on them
        "SAVE_DIR": "./checkpoints",
        "SAVE_IMAGES": False,  # without effect
        "KEEP_EPOCHS": True,  # keep the weights of every epoch validated
        "SAVE_MINUTES": 10.0,  # within an epoch, save the latest state every so often
        "WORKERS": 4,
        "SKIP_CORRUPT": False,  # leave out images that cannot be read
        "PRECISION": "float32",  # or bf16, fp16: automatic mixed precision
        "CHANNELS_LAST": False,
        "COMPILE": False,  # torch.compile
        "CHECKPOINT_STAGES": False,  # half the memory or less for about a third more time
    },
}
PATHS = (
    "MODEL.WEIGHTS",
    "MODEL.BODY_WEIGHTS",
    "MODEL.PHI",
    "TRAINING.TRAIN_DIR",
    "TRAINING.VAL_DIR",
    "TRAINING.SAVE_DIR",
)
PRECISIONS = ("float32", "bf16", "fp16")
SCHEDULES = ("cosine", "constant")
TYPES = {"str": "text", "bool": "True or False", "int": "a whole number", "float": "a number"}


class _Loader(yaml.SafeLoader):
    """As YAML demands, and PyYAML does not: no key twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if doubled := [str(key) for key in keys if keys.count(key) > 1]:
            place = node.start_mark
            raise yaml.YAMLError(f"{doubled[0]} is there twice, from line {place.line + 1} on")
        return super().construct_mapping(node, deep)


def load_config(
    file: str | os.PathLike,
    opts: Sequence[str] = (),
    recipe: Mapping[str, object] | None = None,
    checks: Mapping[str, tuple[Callable, str]] | None = None,
) -> CfgNode:
    """Read a YAML configuration file.

    Args:
        file: relative paths in it are relative to its folder; in an installed package's own files
            to `working_folder` of it.
        opts: keys and values in turn, such as ["OPTIM.BATCH_SIZE", "4"]; relative paths in them are
            relative to the current folder.
        recipe: dotted keys and values that replace the defaults.
        checks: dotted keys and, in place of the usual check, whether a value will do, and in words
            which would.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is no YAML, a key is unknown, or a value is of the wrong type, out of
            range or a path that does not exist. The message names key, value and file (or --opts).
    """
    file = Path(file)
    content = _read_yaml(file)
    if len(opts) % 2:
        raise InputError(f"--opts: {opts[-1]!r} has no value, expected KEY VALUE pairs")

    config = CfgNode(plain(DEFAULTS))
    sources = {}  # key → who set it, to be named where the value turns out to be unusable
    for key, value in (recipe or {}).items():
        _set(config, key, value, "recipe")
    for key, value in _flatten(content, file):
        _set(config, key, value, file, base=working_folder(file.parent))
        sources[key] = file
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        _set(config, key, value, "--opts", base=Path.cwd())
        sources[key] = "--opts"
    config.TRAINING.SAVE_DIR = _absolute(config.TRAINING.SAVE_DIR, working_folder(file.parent))
    for key in ("SESSION", "WEIGHTS"):
        for name in ("NAME", "CS_RATIO"):
            config.MODEL[key] = config.MODEL[key].replace(f"{{{name}}}", str(config.MODEL[name]))
    _check(config, sources, file, checks or {})
    return config


def load_model_section(file: str | os.PathLike) -> CfgNode:
    """Read the MODEL section of a YAML configuration file, and nothing else of it.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: as `load_config` does; or there is no such section.
    """
    file = Path(file)
    content = _read_yaml(file)
    if not isinstance(content.get("MODEL"), Mapping):
        raise InputError(f"{file}: holds no MODEL section, expected that of a training")
    config = CfgNode(plain(DEFAULTS))
    for key, value in _flatten({"MODEL": content["MODEL"]}, file):
        _set(config, key, value, file)
    _check_model(_requirement(config, {}, file, {}))
    return config


def model_sizes(config: CfgNode, task: str = "") -> dict[str, int]:
    """Return the sizes that the configuration sets for a task, as `build_model` takes them."""
    names = ["WIDTH", "WIDTH_STEP", "LAST_EXTRA", "STAGES"]
    if config.MODEL.NAME == "DGUNet_plus":  # which has no such size
        names.remove("LAST_EXTRA")
    sizes = {name.lower(): config.MODEL[name] for name in names if config.MODEL[name] != -1}
    return sizes | ({"cs_ratio": config.MODEL.CS_RATIO} if task == "Compressive_Sensing" else {})


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


def _read_yaml(file: Path) -> Mapping:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such configuration file")
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not a YAML file ({' '.join(str(error).split())})") from error
    if content is not None and not isinstance(content, Mapping):
        raise InputError(f"{file}: holds a {type(content).__name__}, expected keys and values")
    return content or {}


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


def _requirement(config: CfgNode, sources: Mapping, file: Path, checks: Mapping) -> Callable:
    """Return a function of a key, whether a value will do and which would, that raises where the
    key's does not."""

    def require(key: str, holds, expected: str) -> None:
        holds, expected = checks.get(key, (holds, expected))
        section, _, name = key.rpartition(".")
        value = config[section][name] if section else config[name]
        if not holds(value):
            raise InputError(f"{sources.get(key, file)}: {key} is {value!r}, expected {expected}")

    return require


def _check_model(require: Callable) -> None:
    require("MODEL.NAME", lambda v: v in MODELS, f"one of {', '.join(MODELS)}")
    require("MODEL.CS_RATIO", lambda v: 0 < v <= 100, "a percentage")
    for name in ("width", "width_step", "last_extra", "stages"):
        holds, expected = SIZES[name]
        text = f"{expected}, or -1, the published size"
        require(f"MODEL.{name.upper()}", lambda v, holds=holds: v == -1 or holds(v), text)


def _check(config: CfgNode, sources: Mapping, file: Path, checks: Mapping) -> None:
    from dgunet.data.degradations import NAMES, is_degradation

    require = _requirement(config, sources, file, checks)

    def numbers(least: int):
        return lambda values: all(type(v) is int and v >= least for v in values)

    require("GPU", numbers(0), "a list of GPU numbers")
    require("GPU", lambda v: len(set(v)) == len(v), "each GPU once")
    require("TRAINING.VAL_EPOCHS", numbers(1), "a list of epochs, from 1")
    for key in ("MODEL.MODE", "MODEL.SESSION"):
        require(key, lambda v: Path(v).name == v and v != "..", "a folder's name")
    require("MODEL.SESSION", bool, "a folder's name")
    _check_model(require)
    require("MODEL.PHI_INIT", lambda v: v in ("", "pca"), "pca, or '' for random values")
    for key in ("MODEL.PHI", "MODEL.BODY_WEIGHTS"):
        require(key, lambda v: not v or os.path.isfile(v), "a file that exists")
    require("OPTIM.SCHEDULE", lambda v: v in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
    require("SEED", lambda v: 0 <= v < 2**32, "0 or more, below 2³²")
    for key in ("OPTIM.BATCH_SIZE", "OPTIM.NUM_EPOCHS", "OPTIM.ACCUMULATE", "DATA.REPEATS"):
        require(key, lambda v: v > 0, "at least 1")
    for key in ("TRAINING.VAL_AFTER_EVERY", "TRAINING.VAL_TIMES"):
        require(key, lambda v: v > 0, "at least 1")
    for key in ("OPTIM.WARMUP_EPOCHS", "OPTIM.COSINE_EXTRA_EPOCHS", "OPTIM.HALVE_AFTER"):
        require(key, lambda v: v >= 0, "0 or more")
    for key in ("OPTIM.LR_BATCH", "TRAINING.WORKERS", "TRAINING.HOLD_OUT"):
        require(key, lambda v: v >= 0, "0 or more")
    for key in ("OPTIM.LR_MIN", "OPTIM.WEIGHT_DECAY", "OPTIM.CLIP_GRAD", "TRAINING.MINUTES"):
        require(key, lambda v: 0 <= v < math.inf, "0 or more")
    require("OPTIM.WARMUP_SHARE", lambda v: 0 <= v < 1, "from 0 to below 1")
    require("OPTIM.LR_INITIAL", lambda v: 0 < v < math.inf, "above 0")
    require("OPTIM.LR_MIN", lambda v: v <= config.OPTIM.LR_INITIAL, "at most OPTIM.LR_INITIAL")
    require("OPTIM.ACCUMULATE", lambda v: v <= config.OPTIM.BATCH_SIZE, "at most OPTIM.BATCH_SIZE")
    require("OPTIM.EMA", lambda v: 0 <= v < 1, "from 0 to below 1")
    require("TRAINING.SAVE_MINUTES", lambda v: v > 0, "above 0")
    require("TRAINING.PRECISION", lambda v: v in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
    for key in ("TRAINING.TRAIN_PS", "TRAINING.VAL_PS"):
        require(key, lambda v: v >= 16 and v % 8 == 0, "a multiple of 8, at least 16")
    require("DATA.DEGRADATION", is_degradation, NAMES)
    require("TRAINING.TRAIN_DIR", bool, "a data folder (--opts TRAINING.TRAIN_DIR FOLDER)")
    require("TRAINING.TRAIN_DIR", os.path.exists, "a data folder or packed file that exists")
    require(
        "TRAINING.VAL_DIR",
        lambda v: not v or os.path.exists(v),
        "a data folder or packed file that exists, or '' to train without validation",
    )
    require("MODEL.WEIGHTS", lambda v: not v or os.path.isfile(v), "a file that exists")
