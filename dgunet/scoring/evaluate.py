"""What the tasks' `evaluate.py` share: the command line, finding the folders, the report.

A task says what is special about it, its test sets, in a table of `EvaluationSet`. `test.py`
reports its scores through `report`, so that both print the same.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dgunet.base.errors import InputError
from dgunet.base.files import write_bytes
from dgunet.base.folders import working_folder
from dgunet.images.files import IMAGE_SUFFIXES, pair_by_name
from dgunet.scoring.protocols import (
    PROTOCOLS,
    Protocol,
    Score,
    get_protocol,
    score_folders,
)
from dgunet.scoring.published import published_scores
from dgunet.scoring.tables import format_table, write_csv

MODELS = ("DGUNet", "DGUNet_plus")
SETTINGS_FILE = "settings.json"


@dataclass(frozen=True)
class EvaluationSet:
    """Where a test set's targets lie below the data folder, and the protocol that scores it."""

    target: str
    protocol: str


def make_parser(
    description: str,
    folder: Path | None = None,
    test_sets: Mapping[str, EvaluationSet] | None = None,
    default_sets: Sequence[str] = (),
) -> argparse.ArgumentParser:
    """Return the options of a task's `evaluate.py`; the default folders lie below
    `working_folder(folder)`, `folder` being the task's. None: there are no default folders."""
    home = working_folder(folder) if folder else None
    defaults = [home / "results", home / "Datasets"] if home else [None, None]
    default_help = " (default: %(default)s)" if folder else ""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--result_dir",
        type=Path,
        default=defaults[0],
        help="the results: a folder of images, or one folder for each set" + default_help,
    )
    parser.add_argument(
        "--target_dir",
        "--input_dir",
        type=Path,
        default=defaults[1],
        help="a folder of target images, or the data folder of the sets" + default_help,
    )
    if test_sets:
        parser.add_argument(
            "--dataset",
            nargs="+",
            choices=list(test_sets),
            metavar="SET",
            help=f"which of {', '.join(test_sets)} (default: {', '.join(default_sets)})",
        )
    parser.add_argument(
        "--protocol",
        choices=list(PROTOCOLS),
        metavar="NAME",
        help=f"score by another protocol than the set's: {', '.join(PROTOCOLS)}",
    )
    parser.add_argument(
        "--model",
        choices=MODELS,
        help="whose published scores to show (default: the model that made the results, or DGUNet)",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write every image's score here")
    parser.add_argument(
        "--jobs", type=int, default=-1, help="images at a time (default: one per core)"
    )
    return parser


def evaluate_folders(
    task: str,
    options: argparse.Namespace,
    test_sets: Mapping[str, EvaluationSet],
    default_sets: Sequence[str],
    default_protocol: str,
) -> None:
    """Score folders of images and print the report.

    If `--target_dir` itself holds images, its pair with `--result_dir` is scored: as the set
    `--dataset` names, or else as an unknown one by `default_protocol`. Otherwise `--target_dir` is
    the data folder, and of each set <result_dir>/<set> is scored, or <result_dir> itself if it
    holds the images of the only set: of the sets that `--dataset` names, or else of those of
    `default_sets` that are there.

    Raises `InputError` where folders or files are missing or unfit, as `score_folders` says.
    """
    names = getattr(options, "dataset", None)
    if _holds_images(options.target_dir):
        if names and len(names) > 1:
            raise InputError(
                f"{options.target_dir}: holds the images of one set; expected the data folder of "
                f"{', '.join(names)}"
            )
        target = options.target_dir.resolve()
        name = names[0] if names else f"{target.parent.name}/{target.name}"
        folders = {name: (options.result_dir, options.target_dir)}
    elif names or default_sets:
        if not names:
            names = [n for n in default_sets if (options.target_dir / test_sets[n].target).is_dir()]
            names = names or default_sets
        folders = {
            name: (
                _result_folder(options.result_dir, name, alone=len(names) == 1),
                options.target_dir / test_sets[name].target,
            )
            for name in names
        }
    else:
        raise InputError(
            f"{options.target_dir}: holds no image; expected a folder of target images"
        )

    own = {name: test_sets[name].protocol for name in folders if name in test_sets}
    if len(set(own.values())) > 1 and not options.protocol:
        pairs = ", ".join(f"{name} by {protocol}" for name, protocol in own.items())
        raise InputError(f"--dataset: the sets are scored differently ({pairs}); score them apart")
    protocol = get_protocol(options.protocol or next(iter(own.values()), default_protocol))

    for results, targets in folders.values():  # a gap in the last set shows before the first score
        pair_by_name(results, targets)
    settings = {
        name: read_settings(results, options.result_dir) for name, (results, _) in folders.items()
    }
    scores = {
        name: score_folders(results, targets, protocol, options.jobs)
        for name, (results, targets) in folders.items()
    }
    comparable = [name for name in own if own[name] == protocol.name]
    if set(comparable) >= set(default_sets):
        comparable.append("mean")
    report(
        task,
        scores,
        protocol,
        describe_settings(settings),
        model=options.model or model_of(settings.values()),
        comparable=comparable,
        csv=options.csv,
    )


def report(
    task: str,
    scores: Mapping[str, Sequence[Score]],
    protocol: str | Protocol,
    settings: str,
    model: str = "DGUNet",
    comparable: Sequence[str] | None = None,
    csv: str | Path | None = None,
) -> None:
    """Print the protocol, the settings and the table of the sets, with the scores published of
    `model` for the sets named in `comparable` (default: those whose name is a published one; `mean`
    is the mean of all); write every image's score to the file `csv`."""
    protocol = get_protocol(protocol) if isinstance(protocol, str) else protocol
    published = published_scores(task, model)
    if comparable is None:
        comparable = list(scores)
        if set(scores) >= set(published) - {"mean"}:
            comparable.append("mean")
    published = {name: score for name, score in published.items() if name in comparable}
    print(f"{task}, protocol {protocol.name}: {protocol.description}")
    print(settings)
    print()
    print(format_table(scores, published, f"published {model}"))
    if csv:
        write_csv(csv, scores, protocol, settings)
        print(f"\nscores of every image: {csv}")


def write_settings(folder: str | Path, settings: Mapping[str, object]) -> None:
    """Note beside results how they were made (`model`, `self_ensemble`, `local_statistics`, …), for
    `evaluate.py` to print. The file appears whole or not at all."""
    write_bytes(Path(folder) / SETTINGS_FILE, f"{json.dumps(dict(settings), indent=1)}\n".encode())


def read_settings(*folders: str | Path) -> dict | None:
    """Return what the first `settings.json` in `folders` says, None if there is none. Raises
    `InputError` for one that is no JSON object."""
    for folder in folders:
        path = Path(folder) / SETTINGS_FILE
        if not path.is_file():
            continue
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path}: is no JSON ({error})") from error
        if not isinstance(settings, dict):
            raise InputError(f"{path}: holds a {type(settings).__name__}; expected a JSON object")
        return settings
    return None


def describe_settings(settings: Mapping[str, dict | None]) -> str:
    """Return a line on how each set's results were made; one for all where they agree.

    >>> describe_settings({"A": {"self_ensemble": True}, "B": {"self_ensemble": True}})
    'settings: self_ensemble on'
    >>> describe_settings({"A": {"self_ensemble": False}, "B": None})
    'settings of A: self_ensemble off; of B: unknown (no settings.json beside the results)'
    """
    texts = {name: _settings_text(values) for name, values in settings.items()}
    if len(set(texts.values())) == 1:
        text = next(iter(texts.values()))
        return f"settings {text}" if text.startswith("unknown") else f"settings: {text}"
    return "settings " + "; ".join(f"of {name}: {text}" for name, text in texts.items())


def model_of(settings: Sequence[dict | None]) -> str:
    """Return the model that all settings name, DGUNet where they don't."""
    named = {values.get("model") for values in settings if values}
    return named.pop() if len(named) == 1 and named <= set(MODELS) else "DGUNet"


def _settings_text(settings: dict | None) -> str:
    if settings is None:
        return f"unknown (no {SETTINGS_FILE} beside the results)"
    switches = {True: "on", False: "off"}
    return ", ".join(
        f"{key} {switches[value] if isinstance(value, bool) else value}"
        for key, value in settings.items()
    )


def _holds_images(folder: Path) -> bool:
    return folder.is_dir() and any(
        path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
        for path in folder.iterdir()
    )


def _result_folder(result_dir: Path, name: str, alone: bool) -> Path:
    folder = result_dir / name
    if not folder.is_dir() and alone and _holds_images(result_dir):
        return result_dir
    if not folder.is_dir():
        raise InputError(
            f"{folder}: does not exist; expected the results of {name} (--dataset picks the sets, "
            "--result_dir the folder)"
        )
    return folder
