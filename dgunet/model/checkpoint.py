"""Reading and writing weights: this project's checkpoints, safetensors and the published files.

Nothing in a file is ever executed: pickles are read with `weights_only=True`. Saving is atomic.

An own checkpoint is a dict with `config` (what `dgunet.model.registry.build_model` takes),
`state_dict` and whatever training keeps beside them.
"""

import contextlib
import functools
import json
import os
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, BinaryIO

import torch
from torch import Tensor

from dgunet.base.errors import InputError, first_few, printable
from dgunet.base.files import regular_file, write_atomically
from dgunet.base.memory import require_memory
from dgunet.base.structures import NUMBER, leaves
from dgunet.model.network import Network
from dgunet.model.pretrained import find_weights
from dgunet.model.published_format import published_names, published_sizes, unused_entries
from dgunet.model.registry import TASKS, build_model, model_class

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # of weights
LONGEST_NAME = 500  # characters
_MARK = -1  # on the stack of `_check_pickle`
PREFIXES = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name


def read_checkpoint(path: str | os.PathLike) -> dict:
    """Read any checkpoint file onto the CPU. Return what it holds: a dict with at least
    `state_dict` (name → tensor, without `PREFIXES`) and `config` (None in files that are not this
    project's).

    Raises as `regular_file`, and `InputError` if the file holds no state dict, is damaged, holds
    objects that only running code could load, or stands for more values than it holds or `leaves`
    allows."""
    path = regular_file(path, "a checkpoint file")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    for value in leaves(content, path):
        if isinstance(value, Tensor) and not _is_whole(value):
            raise InputError(
                f"{path}: a tensor of {value.numel():,} values of which the file does not hold all"
            )
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    if state is None:
        content, state = {}, content  # a bare state dict
    values = state.values() if isinstance(state, Mapping) else ()
    if not values or not all(isinstance(value, Tensor) for value in values):
        raise InputError(f"{path}: holds no state dict, expected names and tensors")
    names = [str(name) for name in state]
    if (longest := max(map(len, names))) > LONGEST_NAME:
        raise InputError(f"{path}: the name of an entry has {longest:,} characters")
    while prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in names)), None):
        names = [name.removeprefix(prefix) for name in names]
    state = dict(zip(names, state.values(), strict=True))
    config = content.get("config")
    return {**content, "config": config if _is_config(config) else None, "state_dict": state}


def _is_config(value: object) -> bool:
    if not isinstance(value, Mapping) or not {"task", "model", "sizes"} <= value.keys():
        return False
    sizes = value["sizes"]
    return isinstance(sizes, Mapping) and not any(isinstance(s, Tensor) for s in sizes.values())


def _is_whole(value: Tensor) -> bool:
    """Tell whether a tensor holds all values that its shape says: with a stride of 0, few bytes
    stand for any number of values."""
    if value.layout != torch.strided or value.is_meta or value.is_nested:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _read_safetensors(path: Path) -> dict:
    from safetensors import safe_open

    open(path, "rb").close()  # says what is wrong where it cannot be read
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except Exception as error:  # a damaged file can raise nearly anything
        raise InputError(f"{path}: not a readable safetensors file ({printable(error)})") from error
    content: dict = {}
    for key, value in metadata.items():
        content[key] = value
        with contextlib.suppress(ValueError, RecursionError):  # others' metadata
            content[key] = json.loads(value)
    return {**content, "state_dict": state}


def _read_pickle(path: Path):
    with open(path, "rb") as file:
        try:
            _check_pickles(file)
            file.seek(0)
            with warnings.catch_warnings():  # of pickles that torch.save did not write
                warnings.simplefilter("ignore")
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file can raise nearly anything
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            file.seek(0)
            code = found[1] if found else _imported(file)
            if code:
                raise InputError(
                    f"{path}: refused: loading it would run code ({code}), "
                    "expected tensors and plain values only"
                ) from error
            raise InputError(
                f"{path}: not a readable checkpoint: cut off, damaged or not written by torch.save"
            ) from error


def _check_pickles(file: BinaryIO) -> None:
    """Raise an error for a file of `torch.save` whose few bytes stand for more than memory or time
    suffice for: compressed entries, tuples of tuples that are referred to again and again."""
    if file.read(4) != b"PK\x03\x04":  # as before PyTorch 1.6
        file.seek(0)
        for _ in range(5):  # magic number, version, system, content, names of the storages
            _check_pickle(file)
        return
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("compressed")
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                with archive.open(entry) as pickle:
                    _check_pickle(pickle)


def _check_pickle(file: IO[bytes]) -> None:
    """Raise a ValueError if a pickle makes an object of more than `NUMBER` parts, each counted as
    often as it is referred to. Nothing is made: the stack holds the objects' numbers of parts."""
    stack: list[int] = []
    memo: dict[int, int] = {}
    for opcode, argument, _ in pickletools.genops(file):
        takes, gives = opcode.stack_before, opcode.stack_after
        if opcode.name.endswith("PUT") or opcode.name == "MEMOIZE":
            memo[len(memo) if argument is None else int(argument)] = stack[-1]
        elif opcode.name.endswith("GET"):
            stack.append(memo[int(argument or 0)])
        elif opcode.name == "MARK":
            stack.append(_MARK)
        else:
            start = len(stack)
            if pickletools.markobject in takes:
                start -= 1 + stack[::-1].index(_MARK)  # all above the mark
                takes = takes[: takes.index(pickletools.markobject)]  # and what lies below it
            start -= len(takes)
            size = 1 + sum(part for part in stack[start:] if part != _MARK)
            stack[start:] = [size] * len(gives)
            if size > NUMBER:
                raise ValueError(f"more than {NUMBER:,} values")


def _imported(file: BinaryIO) -> str:
    """Return the first name that a pickle would import, without doing so; or nothing."""
    words: list[str] = []
    with contextlib.suppress(Exception):  # damaged, or no pickle
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name in ("GLOBAL", "INST"):
                return str(argument).replace(" ", ".")
            if opcode.name == "STACK_GLOBAL":
                return ".".join(words[-2:])
            if isinstance(argument, str):
                words.append(argument)
    return ""


def load_weights(model: Network, path: str | os.PathLike) -> dict:
    """Load a file's weights into the model, whichever of the known formats it has, and return the
    whole checkpoint as `read_checkpoint` does. Entries of published files that take no part in the
    computation are dropped. Raises `InputError` as `fitting_state`; the model is then unchanged."""
    checkpoint = read_checkpoint(path)
    model.load_state_dict(fitting_state(model, checkpoint, path))
    return checkpoint


def load_model(
    path: str | os.PathLike, task: str | None = None, model: str | None = None
) -> tuple[Network, dict]:
    """Build the network that a file, or the name of bundled pretrained weights such as
    small_gaussian25, holds the weights of, and load them. Return the network, in evaluation mode on
    the CPU, and the checkpoint.

    Task and model are read from the file; where a published file fits several tasks (Deblurring's
    and Denoising's DGUNet are of one size), `task` decides. Raises `InputError` for a file of
    another task or model than asked for, of several, or of none."""
    path = find_weights(path)
    checkpoint = read_checkpoint(path)
    return network_from(checkpoint, path, task, model), checkpoint


def network_from(
    checkpoint: dict, path: str | os.PathLike, task: str | None = None, model: str | None = None
) -> Network:
    """Build the network of a checkpoint that `read_checkpoint` returned, as `load_model` does.
    `path` is the file's name, for messages."""
    candidates = identify(checkpoint)
    if not candidates:
        names = first_few(list(checkpoint["state_dict"]))
        raise InputError(f"{path}: does not say which network it is of; its entries: {names}")
    fitting = [
        config
        for config in candidates
        if task in (None, config["task"]) and model in (None, config["model"])
    ]
    if not fitting:
        asked = " ".join(filter(None, [task, model]))
        raise InputError(f"{path}: this is a {_describe(candidates)} checkpoint, expected {asked}")
    if len(fitting) > 1:
        raise InputError(f"{path}: this is a {_describe(fitting)} checkpoint, say which task's")
    try:
        with torch.device("meta"):  # no memory is taken for sizes that the file does not have
            network = build_model(**fitting[0])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    state = fitting_state(network, checkpoint, path)
    size = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    require_memory(size, f"{path}: a network of these sizes")
    network.to_empty(device="cpu").load_state_dict(state)
    return network.eval()


def identify(checkpoint: dict) -> list[dict]:
    """Return the configs (`build_model`'s arguments) that a checkpoint may be of: the one that this
    project's files carry; several where published tasks share their sizes; none for others."""
    if checkpoint["config"] is not None:
        return [{key: checkpoint["config"][key] for key in ("task", "model", "sizes")}]
    found = published_sizes(checkpoint["state_dict"])
    if found is None:
        return []
    channels, model, sizes = found
    tasks = [task for task in TASKS if model_class(task, model).channels == channels]
    published = [task for task in tasks if _published_sizes(task, model) == sizes]
    return [{"task": task, "model": model, "sizes": sizes} for task in published or tasks]


@functools.cache
def _published_sizes(task: str, model: str) -> dict[str, int]:
    """Return the sizes of a task's published model; in compressive sensing, where ratios are
    several, of the default one."""
    with torch.device("meta"):
        return build_model(task, model).sizes


def is_of_published_size(network: Network) -> bool:
    """Tell whether a network has the sizes of its task's published model, at any ratio."""
    sizes = network.sizes
    ratio = {name: sizes[name] for name in ("cs_ratio",) if name in sizes}
    return _published_sizes(network.task, type(network).__name__) | ratio == sizes


def _describe(configs: list[dict]) -> str:
    """Name what `identify` found, such as "Deblurring or Denoising DGUNet"."""
    return " or ".join(str(config["task"]) for config in configs) + f" {configs[0]['model']}"


def fitting_state(model: Network, checkpoint: dict, path: str | os.PathLike) -> dict[str, Tensor]:
    """Return the checkpoint's tensors under the model's names. Raises `InputError` for entries
    missing, left over or of another shape, each kind named; or, where that can be told, says what
    the file is for instead."""
    state, ours = checkpoint["state_dict"], model.config
    if checkpoint["config"] is not None and not _is_of(identify(checkpoint)[0], ours):
        raise InputError(f"{path}: {_other_network(ours, identify(checkpoint))}")
    own = model.state_dict(keep_vars=True)
    published = not own.keys() & state.keys()
    names = published_names(model) if published else {name: name for name in own}
    tied = [[names[name] for name in group] for group in _tied_groups(model)]
    if Path(path).suffix == ".safetensors":  # holds a shared parameter once
        for group in tied:
            kept = [state[name] for name in group if name in state]
            state = dict.fromkeys(group, kept[0]) | state if kept else state

    expected = {names[name]: tuple(value.shape) for name, value in own.items()}
    expected |= unused_entries(model) if published else {}
    shared = [name for name in expected if name in state]
    fitting = {
        name
        for name in shared
        if tuple(state[name].shape) == expected[name] and state[name].dtype in DTYPES
    }
    misfits = {
        "missing": [name for name in expected if name not in state],
        "left over": [name for name in state if name not in expected],
        "of another shape": [
            f"{name} is {tuple(state[name].shape)}, expected {expected[name]}"
            for name in shared
            if tuple(state[name].shape) != expected[name]
        ],
        "not floating-point of 16 to 64 bits": [
            name for name in shared if state[name].dtype not in DTYPES
        ],
        "one parameter, but of different values": [
            f"{group[0]} and {name}"
            for group in tied
            for name in group[1:]
            if {name, group[0]} <= fitting and not torch.equal(state[name], state[group[0]])
        ],
    }
    if any(misfits.values()):
        candidates = identify(checkpoint)
        if candidates and not any(_is_of(config, ours) for config in candidates):
            raise InputError(f"{path}: {_other_network(ours, candidates)}")
        kinds = "; ".join(f"{len(v)} {kind}: {first_few(v)}" for kind, v in misfits.items() if v)
        raise InputError(f"{path}: does not fit {_describe([ours])}; entries {kinds}")
    return {name: state[names[name]] for name in own}


def _is_of(config: dict, ours: dict) -> bool:
    return (
        _describe([config]) == _describe([ours])
        and config["sizes"].items() <= ours["sizes"].items()  # sizes left out are the published
    )


def _other_network(ours: dict, candidates: list[dict]) -> str:
    """Say what the checkpoint is of and what was expected; of one network, in which sizes."""
    found, expected = f"this is a {_describe(candidates)} checkpoint", _describe([ours])
    for config in candidates:
        if _describe([config]) == expected:
            sizes, others = ours["sizes"], config["sizes"]
            differing = [name for name in others if sizes.get(name) != others[name]]
            found += " with " + ", ".join(f"{k} {others[k]}" for k in differing)
            expected = ", ".join(f"{k} {sizes.get(k)}" for k in differing)
    return f"{found}, expected {expected}"


def _tied_groups(model: Network) -> list[list[str]]:
    """Return the names of each parameter that has several."""
    groups: dict[int, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(value), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def save_checkpoint(path: str | os.PathLike, model: Network, /, **extra) -> None:
    """Save the model's config and weights, and whatever else training keeps: tensors and plain
    values. A path that ends in `.safetensors` gets that format, with `extra` as JSON metadata.
    Raises a ValueError for a copy optimised for inference, whose weights may be rounded."""
    if model.optimized:
        raise ValueError("the model is optimised for inference; save the one it was made of")
    path = Path(path)
    content = {**extra, "config": model.config}
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    if path.suffix != ".safetensors":
        content["state_dict"] = state
        return write_atomically(path, lambda file: torch.save(content, file))
    from safetensors.torch import save

    repeated = {name for group in _tied_groups(model) for name in group[1:]}
    state = {name: value.contiguous() for name, value in state.items() if name not in repeated}
    data = save(state, {key: json.dumps(value) for key, value in content.items()})
    return write_atomically(path, lambda file: file.write(data))
