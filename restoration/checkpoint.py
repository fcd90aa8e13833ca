"""Reading and writing weights: this project's checkpoints, safetensors and the published files.

Nothing in a file is ever executed: pickles are read with `weights_only=True`. Saving is atomic.

An own checkpoint is a dict with `config` (what `restoration.tasks.build_model` takes), `state_dict`
and whatever training keeps beside them.
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from restoration.errors import InputError, first_few
from restoration.network import Network
from restoration.published_names import published_names, unused_entries
from restoration.tasks import MODELS, TASKS, build_model


def read_checkpoint(path: str | os.PathLike) -> dict:
    """Read any checkpoint file onto the CPU.

    Returns:
        A dict with at least `state_dict` (name → tensor, without the prefixes that DataParallel and
        torch.compile add) and `config` (None in published files); whatever else the file holds.

    Raises:
        InputError: the file holds no state dict, is damaged, or holds objects that only running
            code could load.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    if state is None:
        content, state = {}, content  # a bare state dict
    tensors = isinstance(state, Mapping) and all(isinstance(v, Tensor) for v in state.values())
    if not tensors or not state:
        raise InputError(f"{path}: holds no state dict (names and tensors)")
    config = content.get("config")
    if config is not None and not (isinstance(config, Mapping) and "task" in config):
        raise InputError(f"{path}: its config is {config!r}, expected task, model and sizes")
    names = {str(name): value for name, value in state.items()}
    for prefix in ("module.", "_orig_mod."):
        names = {name.removeprefix(prefix): value for name, value in names.items()}
    return {**content, "config": config, "state_dict": names}


def _read_safetensors(path: Path) -> dict:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        return {**{key: json.loads(value) for key, value in metadata.items()}, "state_dict": state}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error


def _read_pickle(path: Path):
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "global" in str(error).lower():
            raise InputError(
                f"{path}: refused, it holds Python objects and loading them would run code; "
                "expected tensors and plain values only"
            ) from error
        raise InputError(f"{path}: not a readable checkpoint ({reason})") from error


def load_weights(model: Network, path: str | os.PathLike) -> dict:
    """Load a file's weights into the model, whichever of the known formats it has.

    Entries of published files that take no part in the computation are dropped. Returns the whole
    checkpoint as `read_checkpoint` does.

    Raises:
        InputError: entries missing, left over or of another shape, each kind named; or, where that
            can be told, what the file is for instead.
    """
    checkpoint = read_checkpoint(path)
    _load_state(model, checkpoint, path)
    return checkpoint


def load_model(
    path: str | os.PathLike, task: str | None = None, model: str | None = None
) -> tuple[Network, dict]:
    """Build the network that a file holds the weights of, and load them.

    Task and model are read from the file; where a published file fits several tasks (Deblurring's
    and Denoising's DGUNet are of one size), `task` decides.

    Returns:
        The network, in evaluation mode, and the checkpoint.

    Raises:
        InputError: the file is of another task or model than asked for, or of an unknown one.
    """
    checkpoint = read_checkpoint(path)
    candidates = identify(checkpoint)
    if not candidates:
        raise InputError(f"{path}: its entries are not those of any DGUNet")
    fitting = [
        c
        for c in candidates
        if c["task"] == (task or c["task"]) and c["model"] == (model or c["model"])
    ]
    if not fitting:
        asked = " ".join(filter(None, [task, model]))
        raise InputError(f"{path}: this is a {describe(candidates)} checkpoint, not {asked}")
    if len(fitting) > 1:
        raise InputError(
            f"{path}: this is a {describe(fitting)} checkpoint; say which task it is for"
        )
    network = build_model(**fitting[0])
    _load_state(network, checkpoint, path)
    return network.eval(), checkpoint


def _load_state(model: Network, checkpoint: dict, path: str | os.PathLike) -> None:
    state, own = checkpoint["state_dict"], model.state_dict()
    unused: Mapping[str, tuple] = {}
    if checkpoint["config"] is None and not own.keys() & state.keys():
        names, unused = published_names(model), unused_entries(model)
    else:
        names = {name: name for name in own}
    tied = _tied_groups(model)
    if path and str(path).endswith(".safetensors"):  # holds a shared parameter once
        state = {**state}
        for group in tied:
            kept = next((names[name] for name in group if names[name] in state), None)
            state |= {
                names[name]: state[kept] for name in group if kept and names[name] not in state
            }

    expected = {names[name]: tuple(value.shape) for name, value in own.items()} | dict(unused)
    found = {name: tuple(value.shape) for name, value in state.items()}
    missing = [name for name in expected if name not in found]
    left_over = [name for name in found if name not in expected]
    misshaped = [
        f"{name} is {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if missing or left_over or misshaped:
        raise InputError(f"{path}: {_misfit(model, checkpoint, missing, left_over, misshaped)}")
    untied = [
        names[name]
        for group in tied
        for name in group[1:]
        if not torch.equal(state[names[name]], state[names[group[0]]])
    ]
    if untied:
        raise InputError(
            f"{path}: entries that are one parameter differ in value: {first_few(untied)}"
        )
    model.load_state_dict({name: state[names[name]] for name in own})


def _misfit(model: Network, checkpoint: dict, missing, left_over, misshaped) -> str:
    candidates = identify(checkpoint)
    ours = model.config
    if candidates and all(candidate != ours for candidate in candidates):
        kinds = {(c["task"], c["model"]) for c in candidates}
        sizes = (
            ""
            if (ours["task"], ours["model"]) not in kinds
            else f" of sizes {candidates[0]['sizes']}"
        )
        wanted = f" of sizes {ours['sizes']}" if sizes else ""
        return (
            f"this is a {describe(candidates)} checkpoint{sizes}, "
            f"expected {ours['task']} {ours['model']}{wanted}"
        )
    parts = [
        f"{len(names)} {kind}: {first_few(names)}"
        for kind, names in (
            ("missing", missing),
            ("left over", left_over),
            ("of another shape", misshaped),
        )
        if names
    ]
    return f"does not fit {ours['task']} {ours['model']}; entries " + "; ".join(parts)


def _tied_groups(model: Network) -> list[list[str]]:
    groups: dict[int, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(value), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def identify(checkpoint: dict) -> list[dict]:
    """Return the configs (`build_model`'s arguments) that a checkpoint may be of: one from this
    project's files, several where published tasks share their sizes, none for anything else."""
    if checkpoint["config"] is not None:
        return [{key: checkpoint["config"].get(key) for key in ("task", "model", "sizes")}]
    shapes = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    try:
        channels = shapes["shallow_feat1.0.weight"][1]
        width = shapes["shallow_feat1.0.weight"][0]
        step = shapes["stage1_encoder.body.0.conv_1.weight"][0] - width
        sizes = {"width": width, "width_step": step}
        if channels == 1:
            measured = shapes["Phi"][0]
            ratio = next(r for r in range(1, 101) if -(-1024 * r // 100) == measured)
            shared = "stage_model.r" in shapes
            middle = (
                5 if shared else sum(n.startswith("body.") and n.endswith(".r") for n in shapes)
            )
            sizes = {"cs_ratio": ratio, **sizes}
            sizes["last_extra"] = shapes["concat_final.weight"][0] - width
            tasks = ["Compressive_Sensing"]
        else:
            shared = "basic.r1" in shapes
            middle = 5 if shared else sum(f"r{k}" in shapes for k in range(1, len(shapes))) - 1
            if shared:
                sizes["last_extra"] = shapes["concat67.weight"][0] - width
            tasks = [task for task in TASKS if task != "Compressive_Sensing"]
    except (KeyError, IndexError, StopIteration):
        return []
    model = MODELS[0] if shared else MODELS[1]
    sizes["stages"] = middle + 2
    configs = [{"task": task, "model": model, "sizes": sizes} for task in tasks]
    with torch.device("meta"):
        return [c for c in configs if build_model(c["task"], model).sizes == sizes] or configs


def describe(configs: list[dict]) -> str:
    """Name what `identify` found, such as "Deblurring or Denoising DGUNet"."""
    names = (
        " or ".join(dict.fromkeys(config["task"] for config in configs)) + f" {configs[0]['model']}"
    )
    ratio = (configs[0]["sizes"] or {}).get("cs_ratio")
    return f"{names} (ratio {ratio})" if ratio else names


def published_state_dict(model: Network) -> dict[str, Tensor]:
    """Return the model's weights as the published code loads them: its names (with `module.`), the
    unused entries filled with zeros.

    Raises:
        ValueError: the model has not the seven stages that the published code fixes.
    """
    if model.sizes["stages"] != 7:
        raise ValueError(f"the published code has 7 stages, this model {model.sizes['stages']}")
    names = published_names(model)
    state = {names[name]: value.detach().clone() for name, value in model.state_dict().items()}
    state |= {name: torch.zeros(shape) for name, shape in unused_entries(model).items()}
    return {f"module.{name}": value for name, value in state.items()}


def save_checkpoint(path: str | os.PathLike, model: Network, **extra) -> None:
    """Save the model's config and weights, and whatever else training keeps (tensors and plain
    values). A path that ends in `.safetensors` gets that format, with `extra` as JSON metadata."""
    path = Path(path)
    content = {"config": model.config, **extra}
    if path.suffix != ".safetensors":
        content["state_dict"] = {k: v.detach().cpu() for k, v in model.state_dict().items()}
        return write_atomically(path, lambda file: torch.save(content, file))
    from safetensors.torch import save

    repeated = {name for group in _tied_groups(model) for name in group[1:]}
    state = {
        name: value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
        if name not in repeated
    }
    data = save(state, {key: json.dumps(value) for key, value in content.items()})
    return write_atomically(path, lambda file: file.write(data))


def write_atomically(path: str | os.PathLike, write: Callable) -> None:
    """Call `write` with a binary file that becomes `path` only when it is complete and on disk, so
    that a process killed in between leaves the old file whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
