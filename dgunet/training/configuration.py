"""The configuration of a training run: one table of keys, a YAML file, the command line.

`KEYS` holds every key with its default, its check and its help. A task's train.py changes defaults
and adds keys of its own (its recipe); the YAML file and then `--opts KEY VALUE …` override them.
`--help` and the key reference in docs/training.md are made of the same table.
"""

import contextlib
import copy
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from yacs.config import CfgNode

from dgunet.base.errors import InputError, printable
from dgunet.base.files import regular_file
from dgunet.base.folders import working_folder
from dgunet.base.structures import check
from dgunet.data.degradations import NAMES, is_degradation
from dgunet.inference.optimize import COMPILE_MODES, PRECISIONS
from dgunet.model.network import SIZES
from dgunet.model.registry import MODELS


class Check(NamedTuple):
    """Whether a value will do, and in words which would."""

    holds: Callable[[Any], bool]
    expected: str


class Key(NamedTuple):
    """A key of the configuration. The type of its values is the default's."""

    default: Any
    help: str
    check: Check = Check(lambda value: True, "")
    is_path: bool = False


def one_of(*values) -> Check:
    return Check(lambda value: value in values, f"one of {', '.join(map(str, values))}")


def multiple_of(number: int, minimum: int) -> Check:
    return Check(
        lambda value: value >= minimum and value % number == 0,
        f"a multiple of {number}, at least {minimum}",
    )


def _size(name: str, text: str) -> Key:
    holds, expected = SIZES[name]
    check = Check(lambda v: v == -1 or holds(v), f"{expected}, or -1, the published size")
    return Key(-1, f"{text}; -1: the published size", check)


ONE_OR_MORE = Check(lambda v: v >= 1, "at least 1")
ZERO_OR_MORE = Check(lambda v: 0 <= v < math.inf, "0 or more")
ABOVE_ZERO = Check(lambda v: 0 < v < math.inf, "above 0")
SHARE = Check(lambda v: 0 <= v < 1, "from 0 to below 1")
FOLDER_NAME = Check(
    lambda v: v.isprintable() and v and Path(v).name == v and v != "..", "a folder's name"
)
FILE = Check(lambda v: not v or os.path.isfile(v), "a file that exists")

KEYS: dict[str, Key] = {
    "GPU": Key(
        [0],
        "ids of the GPUs; several: nn.DataParallel; `[]`: the CPU",
        Check(
            lambda v: all(type(n) is int and n >= 0 for n in v) and len(set(v)) == len(v),
            "a list of different GPU numbers, such as [0, 1]",
        ),
    ),
    "VERBOSE": Key(True, "show a progress bar"),
    "SEED": Key(
        1234,
        "seed of the initial weights, the order of the images and the augmentation",
        Check(lambda v: 0 <= v < 2**32, "0 or more, below 2³²"),
    ),
    "MODEL.MODE": Key(
        "",
        "name of a folder under SAVE_DIR; empty: the task",
        Check(lambda v: not v or FOLDER_NAME.holds(v), "a folder's name"),
    ),
    "MODEL.SESSION": Key(
        "DGUNet",
        "name of the run, a folder under SAVE_DIR/MODE/models; `{KEY}`, here and in WEIGHTS, "
        "stands for the value of another key of MODEL",
        FOLDER_NAME,
    ),
    "MODEL.NAME": Key("DGUNet", "the network: DGUNet or DGUNet_plus", one_of(*MODELS)),
    "MODEL.WIDTH": _size("width", "base width C of the network"),
    "MODEL.WIDTH_STEP": _size("width_step", "width that each level of the U-Net adds"),
    "MODEL.LAST_EXTRA": _size("last_extra", "extra width of the last stage (DGUNet only)"),
    "MODEL.STAGES": _size("stages", "number of stages"),
    "MODEL.WEIGHTS": Key("", "checkpoint to start from, with a fresh optimizer", FILE, True),
    "MODEL.ZERO_IMAGE_CONVOLUTIONS": Key(
        False, "start with stages that only take their gradient step, far ahead of a random start"
    ),
    "OPTIM.BATCH_SIZE": Key(16, "samples of a step, of all GPUs and parts together", ONE_OR_MORE),
    "OPTIM.NUM_EPOCHS": Key(250, "length of the run, unless TRAINING.MINUTES is set", ONE_OR_MORE),
    "OPTIM.LR_INITIAL": Key(2e-4, "highest learning rate", ABOVE_ZERO),
    "OPTIM.LR_MIN": Key(1e-6, "lowest learning rate of the cosine", ZERO_OR_MORE),
    "OPTIM.LR_BATCH": Key(
        0, "multiply both rates by √(BATCH_SIZE / LR_BATCH), if this is not 0", ZERO_OR_MORE
    ),
    "OPTIM.SCHEDULE": Key(
        "cosine", "rate after the warm-up: cosine or constant", one_of("cosine", "constant")
    ),
    "OPTIM.HALVE_AFTER": Key(
        0, "constant schedule: halve the rate after this many epochs; 0: never", ZERO_OR_MORE
    ),
    "OPTIM.WARMUP_EPOCHS": Key(3, "epochs of linear warm-up", ZERO_OR_MORE),
    "OPTIM.WARMUP_SHARE": Key(
        0.02, "with TRAINING.MINUTES: share of the steps for the warm-up, not WARMUP_EPOCHS", SHARE
    ),
    "OPTIM.COSINE_EXTRA_EPOCHS": Key(
        0, "epochs that the cosine is longer than the run, to stop above LR_MIN", ZERO_OR_MORE
    ),
    "OPTIM.WEIGHT_DECAY": Key(0.0, "weight decay of Adam", ZERO_OR_MORE),
    "OPTIM.ACCUMULATE": Key(1, "parts a batch is worked off in, to save memory", ONE_OR_MORE),
    "OPTIM.CLIP_GRAD": Key(0.0, "largest norm of the gradient; 0: no limit", ZERO_OR_MORE),
    "OPTIM.EMA": Key(0.0, "decay of the weights' moving average, such as 0.999; 0: none", SHARE),
    "OPTIM.NEPOCH_DECAY": Key([100], "without effect, as published"),
    "OPTIM.BETA1": Key(0.5, "without effect, as published: Adam's betas are 0.9, 0.999"),
    "DATA.DEGRADATION": Key(
        "",
        "degrade photographs on the fly, such as `gaussian25`, `gaussian0-50`, `rain_light+clean`; "
        "empty: the pairs of `input/` and `target/`",
        Check(is_degradation, NAMES),
    ),
    "DATA.GREY": Key(False, "train on grey images"),
    "DATA.REPEATS": Key(1, "crops that an epoch takes of each image", ONE_OR_MORE),
    "DATA.MIXUP_AFTER": Key(-1, "blend the pairs of a batch (MixUp) after this epoch; -1: never"),
    "TRAINING.MINUTES": Key(
        0.0, "length of the run, for which its first steps are timed; 0: NUM_EPOCHS", ZERO_OR_MORE
    ),
    "TRAINING.RESUME": Key(False, "go on from `model_latest.pth`"),
    "TRAINING.TRAIN_DIR": Key(
        "",
        "data to train on: a folder, or a packed file (.h5)",
        Check(
            lambda v: v and os.path.exists(v),
            "a data folder or packed file that exists (--opts TRAINING.TRAIN_DIR FOLDER)",
        ),
        True,
    ),
    "TRAINING.VAL_DIR": Key(
        "",
        "data to validate on, as TRAIN_DIR; empty: none",
        Check(
            lambda v: not v or os.path.exists(v),
            "a data folder or packed file that exists, or '' to train without validation",
        ),
        True,
    ),
    "TRAINING.HOLD_OUT": Key(
        0,
        "train without this many images of TRAIN_DIR, evenly spaced, and validate on them; of this "
        "and VAL_DIR, the one on the command line replaces the file's",
        ZERO_OR_MORE,
    ),
    "TRAINING.SAVE_DIR": Key(
        "./checkpoints", "where runs are kept", Check(str.isprintable, "a folder's name"), True
    ),
    "TRAINING.TRAIN_PS": Key(256, "side of the training crops, pixels", multiple_of(8, 16)),
    "TRAINING.VAL_PS": Key(256, "side of the validation crops, pixels", multiple_of(8, 16)),
    "TRAINING.VAL_AFTER_EVERY": Key(1, "validate every so many epochs", ONE_OR_MORE),
    "TRAINING.VAL_EPOCHS": Key(
        [],
        "if given: validate in these epochs instead, and in all after VAL_ALWAYS_AFTER",
        Check(lambda v: all(type(n) is int and n >= 1 for n in v), "a list of epochs, from 1"),
    ),
    "TRAINING.VAL_ALWAYS_AFTER": Key(0, "see VAL_EPOCHS", ZERO_OR_MORE),
    "TRAINING.VAL_TIMES": Key(
        1,
        "validations in such an epoch; with MINUTES: in the whole run",
        Check(lambda v: 1 <= v <= 10_000, "from 1 to 10,000"),
    ),
    "TRAINING.SAVE_IMAGES": Key(False, "without effect, as published"),
    "TRAINING.KEEP_EPOCHS": Key(True, "keep `model_epoch_N.pth` of every epoch validated"),
    "TRAINING.SAVE_MINUTES": Key(10.0, "minutes between two saves within an epoch", ABOVE_ZERO),
    "TRAINING.WORKERS": Key(4, "processes that load data; 0: none of their own", ZERO_OR_MORE),
    "TRAINING.SKIP_CORRUPT": Key(False, "leave out images that cannot be read, and count them"),
    "TRAINING.PRECISION": Key(
        "float32",
        "float32; tf32, the same but convolutions with 10 bits, on GPUs from Ampere on; or "
        "automatic mixed precision: bf16, fp16",
        one_of(*PRECISIONS),
    ),
    "TRAINING.CHANNELS_LAST": Key(False, "keep images in the channels_last memory layout"),
    "TRAINING.COMPILE": Key(
        "",
        f"mode of torch.compile: {', '.join(COMPILE_MODES)}; empty: not compiled",
        Check(lambda v: v in ("", *COMPILE_MODES), f"{', '.join(COMPILE_MODES)} or ''"),
    ),
    "TRAINING.CHECKPOINT_STAGES": Key(
        False, "compute each stage again in the backward pass: less memory, more time"
    ),
}
LARGEST_FILE = 10**6  # bytes
TYPES = {str: "text", bool: "True or False", int: "a whole number", float: "a number"}
Recipe = Mapping[str, Any]  # dotted key → another default, or a whole `Key`


class _Loader(yaml.SafeLoader):
    """As YAML demands, and PyYAML does not: no key twice. Keys are plain values; `<<` merges."""

    def construct_mapping(self, node, deep=False):
        known: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"a key is no plain value, line {key.start_mark.line + 1}")
            if key.value in known:
                place = node.start_mark.line + 1
                raise yaml.YAMLError(f"{key.value} is there twice, from line {place} on")
            known.add(key.value)
        return super().construct_mapping(node, deep)


def load_config(
    file: str | os.PathLike, opts: Sequence[str] = (), recipe: Recipe | None = None
) -> CfgNode:
    """Read a YAML configuration file.

    Args:
        file: relative paths in it start at `working_folder` of its folder.
        opts: keys and values in turn, such as ["OPTIM.BATCH_SIZE", "4"]; relative paths in them
            start at the current folder.
        recipe: what a task changes in `KEYS`.

    Raises `InputError` if the file is no YAML, a key is unknown, or a value is of the wrong type,
    out of range or a path that does not exist. The message names key, value and file (or --opts).
    """
    file = Path(file)
    keys, content = with_recipe(recipe or {}), read_yaml(file)
    if len(opts) % 2:
        raise InputError(f"--opts: {opts[-1]!r} has no value, expected KEY VALUE pairs")
    folder = working_folder(file.parent)
    values = {name: copy.deepcopy(key.default) for name, key in keys.items()}
    values["TRAINING.SAVE_DIR"] = _absolute(values["TRAINING.SAVE_DIR"], folder)
    sources: dict[str, str | Path] = {}
    for source, base, given in (
        (file, folder, _leaves(content)),
        ("--opts", Path.cwd(), zip(opts[::2], opts[1::2], strict=True)),
    ):
        for name, value in given:
            value = _typed(value, name, keys, source)
            values[name] = _absolute(value, base) if keys[name].is_path else value
            sources[name] = source
    for name, other in (("HOLD_OUT", "VAL_DIR"), ("VAL_DIR", "HOLD_OUT")):
        name, other = f"TRAINING.{name}", f"TRAINING.{other}"
        if values[name] and sources.get(name) == "--opts" and sources.get(other) != "--opts":
            values[other] = keys[other].default
    for name in ("MODEL.SESSION", "MODEL.WEIGHTS"):
        values[name] = re.sub(
            r"\{(\w+)\}", lambda m: str(values.get(f"MODEL.{m[1]}", m[0])), values[name]
        )
    wrong = [(n, k.check.expected) for n, k in keys.items() if not k.check.holds(values[n])]
    for name, expected in [*wrong, *_contradictions(values)]:
        source = sources.get(name, file)
        raise InputError(f"{source}: {name} is {values[name]!r}, expected {expected}")
    config = CfgNode()
    for name, value in values.items():
        section, _, last = name.rpartition(".")
        node = config.setdefault(section, CfgNode()) if section else config
        node[last] = value
    return config


def with_recipe(recipe: Recipe) -> dict[str, Key]:
    """Return `KEYS` as a task changes them."""
    return KEYS | {
        key: value if isinstance(value, Key) else KEYS[key]._replace(default=value)
        for key, value in recipe.items()
    }


def model_sizes(config: CfgNode) -> dict[str, int]:
    """Return the sizes that the configuration sets, as `build_model` takes them."""
    sizes = {name: config.MODEL.get(name.upper(), -1) for name in SIZES}
    if config.MODEL.NAME == "DGUNet_plus":  # which has no such size
        sizes.pop("last_extra")
    return {name: size for name, size in sizes.items() if size != -1}


def plain(config: Mapping) -> dict:
    """Return a configuration as a copy of plain dicts, which a checkpoint can hold."""
    return {k: plain(v) if isinstance(v, Mapping) else v for k, v in config.items()}


def changes(before: Mapping, after: Mapping) -> list[str]:
    """Return what differs between two configurations.

    >>> changes({"SEED": 1, "OPTIM": {"EMA": 0.0}}, {"SEED": 1, "OPTIM": {"EMA": 0.9}})
    ['OPTIM.EMA 0.0 → 0.9']
    """
    old, new = dict(_leaves(before)), dict(_leaves(after))
    return [f"{k} {old.get(k)!r} → {new[k]!r}" for k in new if k not in old or old[k] != new[k]]


def help_text(keys: Mapping[str, Key]) -> str:
    """Return the keys as lines of text, for --help."""
    lines = [f"  {name} {shown(key.default)}\n      {key.help}" for name, key in keys.items()]
    return "\n".join(["keys and their defaults:", *lines])


def shown(default: Any) -> str:
    """Return a default as it is written in help and pages."""
    return "''" if default == "" else f"{default:g}" if type(default) is float else str(default)


def _contradictions(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the keys whose values do not go with those of others, and what is expected instead."""
    if values["OPTIM.LR_MIN"] > values["OPTIM.LR_INITIAL"]:
        yield "OPTIM.LR_MIN", "at most OPTIM.LR_INITIAL"
    if values["OPTIM.ACCUMULATE"] > values["OPTIM.BATCH_SIZE"]:
        yield "OPTIM.ACCUMULATE", "at most OPTIM.BATCH_SIZE"
    if values["OPTIM.ACCUMULATE"] > 1 and values["TRAINING.COMPILE"] not in ("", "default"):
        # CUDA graphs write over the gradients of the part before.
        yield "TRAINING.COMPILE", "default where OPTIM.ACCUMULATE is above 1"
    if values["TRAINING.HOLD_OUT"] and values["TRAINING.VAL_DIR"]:
        yield "TRAINING.HOLD_OUT", "0 where TRAINING.VAL_DIR is given"


def _typed(value, name: str, keys: Mapping[str, Key], source: str | Path) -> Any:
    """Return a value as one of the type of its key."""
    if name not in keys:
        close = get_close_matches(name, keys, 1)
        similar = f", did you mean {close[0]}?" if close else ""
        raise InputError(f"{source}: unknown key {name}{similar}")
    default, given = keys[name].default, value
    if isinstance(value, str):  # as yacs reads 1e-4, which is a string to YAML, and [0,1]
        with contextlib.suppress(RecursionError, MemoryError):
            value = CfgNode._decode_cfg_value(value)
    if isinstance(default, str):
        value = "" if value is None else value if isinstance(value, str) else given
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if isinstance(default, list) and (type(value) is int or isinstance(value, tuple)):
        value = list(value) if isinstance(value, tuple) else [value]
    if isinstance(value, int) and abs(value) > 2**32:
        raise InputError(f"{source}: {name} is {printable(given)}, expected at most 2³²")
    if type(value) is not type(default):
        expected = TYPES.get(type(default), "a list")
        raise InputError(f"{source}: {name} is {given!r}, expected {expected}")
    return value


def _leaves(node: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def read_yaml(file: Path) -> Mapping:
    """Return what a YAML file holds. Raises as `load_config`."""
    if (size := regular_file(file, "a configuration file").stat().st_size) > LARGEST_FILE:
        raise InputError(f"{file}: has {size:,} bytes; expected a configuration file")
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except Exception as error:  # numbers, dates and nesting raise what is not documented
        raise InputError(f"{file}: not a YAML file ({printable(error)})") from error
    check(content, file)
    if content is not None and not isinstance(content, Mapping):
        raise InputError(f"{file}: holds a {type(content).__name__}, expected keys and values")
    return content or {}


def _absolute(path: str, base: Path) -> str:
    return os.path.abspath(base / os.path.expanduser(path)) if path else path
