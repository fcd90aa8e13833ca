"""A folder of results, and beside them how they were made (settings.json) and their scores
(scores.csv)."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from dgunet.base.errors import InputError, first_few, printable
from dgunet.base.files import OwnedFolder, read_json, sha256, write_bytes
from dgunet.images.files import IMAGE_SUFFIXES
from dgunet.inference.options import restorer_options
from dgunet.inference.restorer import Restorer
from dgunet.model.checkpoint import is_of_published_size

SETTINGS_FILE, SCORES_FILE = "settings.json", "scores.csv"
_RESULT_SUFFIXES = (*IMAGE_SUFFIXES, ".mat")
_NOT_COMPARED = ("device", "torch", "weights")  # they change no result
Pair = TypeVar("Pair", bound=tuple[Path, Path])  # an image and its result


class ResultsFolder:
    """The folder that a program writes results into. It need not exist.

    `settings.json` says how the results were made, as `describe_run` returns it. While they are
    being made, and if that is interrupted, it also says `unfinished`.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]):
        self.path, self.settings = Path(path), dict(settings)
        self.scores = self.path / SCORES_FILE
        self._resumed = False

    def claim(self, files: Iterable[Path], overwrite: bool, sources: Iterable[Path]) -> None:
        """Make sure that a run that makes all results anew loses nothing by writing `files`.

        Results of the same program are overwritten; other files only if `overwrite`. Raises
        `InputError` if files are in the way, or the folder holds other results or a folder of
        `sources`.
        """
        for source in sources:
            if self.path.resolve() in (source.resolve(), *source.resolve().parents):
                raise InputError(
                    f"{self.path}: is where the results would go, but {source} lies there; choose "
                    "another --result_dir"
                )
        files = set(files)
        others = [
            path.name
            for path in sorted(self.path.rglob("*"))
            if path.suffix.lower() in _RESULT_SUFFIXES and path not in files and path.is_file()
        ]
        if others:
            raise InputError(
                f"{self.path}: holds {len(others)} images or MAT files that this run would not "
                f"replace: {first_few(others)}; remove them or choose another --result_dir"
            )
        files |= {self.path / SETTINGS_FILE, self.scores}
        existing = sorted(path.name for path in files if path.exists())
        if overwrite or not existing:
            return
        program = self.settings["program"]
        if (read_settings(self.path) or {}).get("program") != program:
            raise InputError(
                f"{self.path}: holds {first_few(existing)}, not made by {program}; choose another "
                "--result_dir, or --overwrite"
            )

    def finished(self, images: Sequence[Pair], overwrite: bool) -> list[Pair]:
        """Return those of (image, result) whose result is there, made by an earlier run with these
        settings from the image as it is now; none if `overwrite`. Raises `InputError` if results
        are there without settings, or of other ones."""
        if overwrite:
            return []
        there = read_settings(self.path)
        if there is None:
            if existing := [result for _, result in images if result.exists()]:
                raise InputError(
                    f"{first_few(existing)}: exist, without the {SETTINGS_FILE} of this program; "
                    "choose another --result_dir, or --overwrite"
                )
            return []
        differing = [
            f"{key} {there.get(key)} (now {value})"
            for key, value in self.settings.items()
            if key not in _NOT_COMPARED and there.get(key) != value
        ]
        if differing:
            raise InputError(
                f"{self.path}: holds results of other settings: {first_few(differing)}; choose "
                "another --result_dir, or --overwrite"
            )
        self._resumed = True
        # What is older than the settings of an unfinished run was there before it, and may be of
        # other settings: that run was to overwrite it.
        unfinished = there.get("unfinished")
        begun = (self.path / SETTINGS_FILE).stat().st_mtime if unfinished else -math.inf

        def is_current(image: Path, result: Path) -> bool:
            try:
                since = max(begun, image.stat().st_mtime)
                return result.is_file() and result.stat().st_mtime >= since
            except OSError:
                return False

        return [pair for pair in images if is_current(*pair)]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Note the settings, `unfinished` among them until the block ends without an error. Until
        then no other process may write there (`InputError`)."""
        with OwnedFolder(self.path):
            if not self._resumed:
                write_settings(self.path, {**self.settings, "unfinished": True})
            yield
            write_settings(self.path, self.settings)


def describe_run(restorer: Restorer, options: argparse.Namespace, program: str) -> dict:
    """Return the settings that a program notes beside results: the weights, and options that may
    change a result."""
    config, device = restorer.network.config, str(restorer.device)
    if restorer.device.type == "cuda":
        device += f" ({torch.cuda.get_device_name(restorer.device)})"
    settings = {
        "program": program,
        "task": config["task"],
        "model": config["model"],
        "weights": options.weights.name,
        "weights_sha256": sha256(options.weights),
        **restorer_options(options),
        "device": device,
        "torch": torch.__version__,
    }
    del settings["compile"]
    if not is_of_published_size(restorer.network):
        settings["sizes"] = config["sizes"]
    return settings


def write_settings(folder: str | Path, settings: Mapping[str, object]) -> None:
    """Note beside results how they were made."""
    write_bytes(Path(folder) / SETTINGS_FILE, f"{json.dumps(dict(settings), indent=1)}\n".encode())


def read_settings(*folders: str | Path) -> dict | None:
    """Return what the first `settings.json` in `folders` says, None if there is none. Raises
    `InputError` if it is not of this program."""
    for folder in folders:
        path = Path(folder) / SETTINGS_FILE
        if not path.exists():
            continue
        settings = read_json(path, "settings of this program")
        if not isinstance(settings, dict):
            raise InputError(f"{path}: holds a {type(settings).__name__}; expected a JSON object")
        return settings
    return None


def describe_settings(settings: Mapping[str, dict | None]) -> str:
    """Return a line on how the results of sets were made: what they share, then what they don't.

    >>> describe_settings({"A": {"sigma": 15, "grey": True}, "B": {"sigma": 25, "grey": True}})
    'settings: grey on; of A: sigma 15; of B: sigma 25'
    >>> describe_settings({"A": {"self_ensemble": False}, "B": None})
    'settings: of A: self_ensemble off; of B: unknown (no settings.json beside the results)'
    """
    known = [of_set or {} for of_set in settings.values()]
    shared = {
        key: value
        for key, value in known[0].items()
        if all(of_set.get(key) == value for of_set in known)
    }
    parts = [_as_text(shared)] if shared else []
    for name, of_set in settings.items():
        rest = of_set and {key: value for key, value in of_set.items() if key not in shared}
        if rest != {}:
            of = f"of {printable(name)}: " if any(known) else ""
            parts.append(of + _as_text(rest))
    return f"settings: {'; '.join(dict.fromkeys(parts))}"


def _as_text(settings: Mapping | None) -> str:
    if settings is None:
        return f"unknown (no {SETTINGS_FILE} beside the results)"
    switches = {"True": "on", "False": "off"}
    return ", ".join(
        f"{printable(key)} {switches.get(str(value), printable(value))}"
        for key, value in settings.items()
    )
