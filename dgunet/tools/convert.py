"""Describe a checkpoint, check it, and write it in another format.

    python -m dgunet.tools.convert FILE.pth                 writes FILE.safetensors
    python -m dgunet.tools.convert FILE.pth --published     writes FILE_published.pth
    python -m dgunet.tools.convert FILE.pth --info          writes nothing

FILE is a published checkpoint, one that was trained here, or safetensors; FILE.safetensors is for
this project, FILE_published.pth for the published code, which can also resume a run from it if FILE
is a model_latest.pth. The program checks that the entries are those of the network, each with its
shape, and that all values are finite. A safetensors file is without what only training needs, such
as the optimizer's state. Of several files the program names those that fail, and exits with 2.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from dgunet.base.errors import InputError, command, first_few, printable
from dgunet.base.files import write_atomically
from dgunet.base.options import new_parser
from dgunet.model.checkpoint import (
    identify,
    is_of_published_size,
    network_from,
    read_checkpoint,
    save_checkpoint,
)
from dgunet.model.network import Network
from dgunet.model.published_format import published_adam, published_state_dict, unused_entries
from dgunet.model.registry import TASKS

SAFETENSORS = ".safetensors"
PUBLISHED_STAGES = 7
TRAINING_STATE = ("training", "optimizer", "scheduler", "scaler")  # keys that only resuming needs
_LONGEST_VALUE = 70  # characters of a value that are printed


def read_network(
    path: str | os.PathLike, task: str | None = None
) -> tuple[Network, dict, list[str]]:
    """Return the network of a checkpoint of any format, the checkpoint as `read_checkpoint` does,
    and the tasks that it fits: several for published weights of sizes that tasks share, of which
    the network is the first's. Raises as `read_checkpoint` and `network_from`, and `InputError` for
    values that are not finite."""
    checkpoint = read_checkpoint(path)
    tasks = [c["task"] for c in identify(checkpoint) if task in (None, c["task"])]
    network = network_from(checkpoint, path, tasks[0] if tasks else task)
    state = checkpoint["state_dict"]
    if broken := [name for name, value in state.items() if not value.float().isfinite().all()]:
        raise InputError(
            f"{path}: {len(broken)} of its {len(state)} entries hold values that are not finite: "
            f"{first_few(broken)}"
        )
    return network, checkpoint, tasks


def describe(path: str | os.PathLike, network: Network, checkpoint: dict, tasks: list[str]) -> str:
    """Return in lines of text what `read_network` found."""
    state, config = checkpoint["state_dict"], network.config
    names = "this project's" if network.state_dict().keys() & state.keys() else "published"
    sizes = ", ".join(f"{name} {value}" for name, value in network.sizes.items())
    if is_of_published_size(network):
        sizes += ", as published"
    count = sum(parameter.numel() for parameter in network.parameters())
    precision = ", ".join(sorted({str(v.dtype).removeprefix("torch.") for v in state.values()}))
    what = f"{' or '.join(tasks)} {config['model']}"
    if len(tasks) > 1:
        what += " (their sizes are the same)"
    if ratio := network.sizes.get("cs_ratio"):
        what += f", ratio {ratio} %"
    file = "pickle" if zipfile.is_zipfile(path) else "pickle as before PyTorch 1.6"
    if Path(path).suffix == SAFETENSORS:
        file = "safetensors"
    lines = [
        what,
        f"sizes: {sizes}",
        f"parameters: {count:,}, {precision}",
        f"format: {file}, {names} names, {_megabytes(path)}",
    ]
    if unused := [name for name in unused_entries(network) if name in state]:
        values = sum(state[name].numel() for name in unused)
        lines.append(f"unused, dropped: {first_few(unused, 1)} ({values:,} values)")
    for key, value in sorted(_notes(checkpoint).items()):
        text = json.dumps(value, ensure_ascii=False)
        lines.append(f"{printable(key)}: {printable(text, _LONGEST_VALUE)}")
    if any(checkpoint.get(key) is not None for key in TRAINING_STATE):
        lines.append("training state: yes, left out in safetensors")
    lines.append(f"checked: all {len(state)} entries belong and fit, all values are finite")
    return "\n  ".join([printable(path), *lines])


def write_published(
    path: str | os.PathLike,
    network: Network,
    epoch: int | None = None,
    training: Mapping | None = None,
) -> None:
    """Write a network's weights as the published code loads them: for image restoration a dict with
    `state_dict` (and `epoch`), for compressive sensing the state dict alone; in the file format of
    PyTorch before 1.6, which the PyTorch 1.1 of the published code can read.

    With the state of a run (`training` of a `model_latest.pth`), `optimizer` is written too, so
    that the published code can resume it; not with a moving average, which the weights then are.

    Raises `InputError` for another number of stages than the published code has, or a state that is
    none of this network.
    """
    if network.sizes["stages"] != PUBLISHED_STAGES:
        raise InputError(
            f"{path}: not written: the published code has {PUBLISHED_STAGES} stages, this network "
            f"{network.sizes['stages']}"
        )
    content: Mapping = published_state_dict(network)
    if network.channels == 3:
        content = {"state_dict": content} | ({} if epoch is None else {"epoch": epoch})
        try:
            if training and "model" not in training:
                rate = training["config"]["OPTIM"]["LR_INITIAL"]
                content["optimizer"] = published_adam(network, training["optimizer"], rate)
        except Exception as error:  # a damaged state can raise nearly anything
            raise InputError(f"{path}: not written: the training state is damaged") from error
    write_atomically(
        path, lambda file: torch.save(content, file, _use_new_zipfile_serialization=False)
    )


def convert(
    path: Path,
    output: Path | None = None,
    *,
    task: str | None = None,
    published: bool = False,
    overwrite: bool = False,
) -> None:
    """Describe a checkpoint and, unless `output` is None, write it: as safetensors or, if
    `published`, for the published code.

    Raises `InputError` as `read_network` and `write_published`, for a file that fits several tasks,
    and for an output that is the file itself or of another suffix; `FileExistsError` for one that
    exists, unless `overwrite`.
    """
    if output is not None:
        if published == (output.suffix == SAFETENSORS):
            expected = "a name in .pth or .pkl with --published, in .safetensors without"
            raise InputError(f"{output}: is the name to write to; expected {expected}")
        if output.exists() and path.exists() and output.samefile(path):
            raise InputError(f"{path}: would be written over itself; expected another name")
        if output.exists() and not overwrite:
            raise FileExistsError(
                f"{output}: exists; --overwrite replaces it, -o FILE names another"
            )
    network, checkpoint, tasks = read_network(path, task)
    print(describe(path, network, checkpoint, tasks), flush=True)
    if output is None:
        return
    if len(tasks) > 1:
        raise InputError(f"{path}: fits {' and '.join(tasks)}; expected --task to say which")
    notes = _notes(checkpoint)
    if published:
        write_published(output, network, notes.get("epoch"), checkpoint.get("training"))
    else:
        save_checkpoint(output, network, **notes)
    print(f"  written: {printable(output)}, {_megabytes(output)}")


def _notes(checkpoint: dict) -> dict:
    """Return what a checkpoint holds beside weights and training state, as far as JSON can."""
    notes = {}
    for key, value in checkpoint.items():
        if isinstance(key, str) and key not in ("config", "state_dict", *TRAINING_STATE):
            with contextlib.suppress(TypeError, ValueError, RecursionError):
                json.dumps(value)
                notes[key] = value
    return notes


def _megabytes(path: str | os.PathLike) -> str:
    return f"{os.path.getsize(path) / 1e6:.1f} MB"


@command
def main(arguments: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    add = parser.add_argument
    text = "a checkpoint: .pth, .pkl, .safetensors"
    add("files", nargs="+", type=Path, metavar="FILE", help=text)
    text = "where to write: a file, or an existing folder (default: beside FILE)"
    add("-o", "--output", type=Path, metavar="FILE", help=text)
    add("--published", action="store_true", help="write for the published code, not safetensors")
    add("--info", action="store_true", help="describe and check only, write nothing")
    text = "which task, where weights fit several; stop unless they are of this one"
    add("--task", choices=list(TASKS), help=text)
    add("--overwrite", action="store_true", help="replace the file written, if it exists")
    options = vars(parser.parse_args(arguments))
    files, folder, info = (options.pop(name) for name in ("files", "output", "info"))
    if info and (folder or options["published"] or options["overwrite"]):
        raise InputError("--info writes nothing; expected no -o, --published, --overwrite with it")
    if folder and len(files) > 1 and not folder.is_dir():
        raise InputError(f"{folder}: is no folder; expected one for the {len(files)} files")
    ending = "_published.pth" if options["published"] else SAFETENSORS
    outputs: dict[Path, Path] = {}
    for path in files:
        output = folder or path.parent
        outputs[path] = output / f"{path.stem}{ending}" if output.is_dir() else output
    doubled = [output for output, count in Counter(outputs.values()).items() if count > 1]
    if doubled and not info:
        raise InputError(f"{first_few(doubled)}: several files would be written there")
    failed = 0
    for path, output in outputs.items():
        try:
            convert(path, None if info else output, **options)
        except (InputError, OSError) as error:
            if len(files) == 1:
                raise
            failed += 1
            print(f"error: {printable(error, 2000)}", file=sys.stderr)
    if failed:
        raise InputError(f"{failed} of {len(files)} files failed, named above")


if __name__ == "__main__":
    main()
