"""Scoring the results that lie in folders: what the tasks' `evaluate.py` share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dgunet.base.errors import InputError, first_few, printable
from dgunet.base.folders import working_folder
from dgunet.base.options import new_parser
from dgunet.base.threads import in_parallel
from dgunet.images.files import IMAGE_SUFFIXES, pair_by_name, read_image
from dgunet.model.registry import MODELS, task_folder
from dgunet.scoring.protocols import PROTOCOLS, Score, TooSmall, describe, score_image
from dgunet.scoring.results_folder import describe_settings, read_settings
from dgunet.scoring.tables import format_table, write_csv


@dataclass(frozen=True)
class EvaluationSet:
    """A test set."""

    target: str  # where its targets lie below the data folder
    protocol: str  # the name of the protocol that scores it
    images: int = 0  # of which the paper's scores are the mean
    published: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # model → dB, SSIM


@dataclass(frozen=True)
class Benchmark:
    """The test sets of a task, by name."""

    task: str
    sets: Mapping[str, EvaluationSet]
    default_sets: Sequence[str]  # those tested unless others are asked for
    protocol: str  # of images that are none of the sets
    published_mean: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # of all sets

    def target(self, folder: Path, name: str) -> Path:
        """Return where the targets of a set lie in a data folder, or in its `test/`, where the
        published programs for deraining have them."""
        place, published = (part / self.sets[name].target for part in (folder, folder / "test"))
        return published if published.is_dir() and not place.exists() else place

    @property
    def home(self) -> Path:
        """The folder of the task's data and results."""
        return working_folder(task_folder(self.task))

    def published(
        self, scores: Mapping[str, Sequence[Score]], protocol: str, model: str
    ) -> dict[str, tuple[float, float]]:
        """Return the published (PSNR, SSIM) of a model that scores may be compared with, by set:
        those of the same protocol and of as many images. With all sets there is their mean too."""
        comparable = {
            name: known.published[model]
            for name, known in self.sets.items()
            if model in known.published
            and known.protocol == protocol
            and len(scores.get(name, ())) == known.images
        }
        if model in self.published_mean and comparable.keys() == self.sets.keys():
            comparable["mean"] = self.published_mean[model]
        return comparable


def make_parser(description: str, benchmark: Benchmark) -> argparse.ArgumentParser:
    """Return the options of a task's `evaluate.py`."""
    parser = new_parser(description)
    add = parser.add_argument
    text = "the results: a folder of images, or one folder for each set"
    add("--result_dir", type=Path, help=f"{text} (default: {benchmark.home / 'results'})")
    text = f"of target images, or the data of the sets (default: {benchmark.home / 'Datasets'})"
    add("--target_dir", "--input_dir", type=Path, help=f"a folder {text}")
    text = f"which of {first_few(list(benchmark.sets), 5)} (default: those that are there)"
    add("--dataset", nargs="+", choices=list(benchmark.sets), metavar="SET", help=text)
    text = f"score by another protocol than the set's: {', '.join(PROTOCOLS)}"
    add("--protocol", choices=list(PROTOCOLS), metavar="NAME", help=text)
    text = "whose published scores to show (default: the model that made the results, or DGUNet)"
    add("--model", choices=MODELS, help=text)
    add("--csv", type=Path, metavar="FILE", help="write every image's score here")
    add("--jobs", type=int, default=-1, help="images at a time (default: one per core)")
    return parser


def evaluate_folders(benchmark: Benchmark, options: argparse.Namespace) -> None:
    """Score folders of images and print the report.

    If `--target_dir` itself holds images, its pair with `--result_dir` is scored: as the set
    `--dataset` names, or else as an unknown one by the task's protocol. Otherwise `--target_dir` is
    the data folder, and of each set <result_dir>/<set> is scored, or <result_dir> itself if it
    holds the images of the only set: of the sets that `--dataset` names, or else of those of the
    default sets that are there. Raises `InputError` where folders or files are missing or unfit.
    """
    if options.csv and options.csv.suffix.lower() != ".csv":
        raise InputError(f"{options.csv}: is the table to write; expected a name in .csv")
    result_dir = options.result_dir or benchmark.home / "results"
    target_dir = options.target_dir or benchmark.home / "Datasets"
    if holds_images(target_dir):
        target = target_dir.resolve()
        names = options.dataset or [f"{target.parent.name}/{target.name}"]
        if len(names) > 1:
            raise InputError(
                f"{target_dir}: holds the images of one set; expected the data folder of "
                f"{', '.join(names)}"
            )
        folders = {names[0]: (result_dir, target_dir)}
    else:
        targets = {n: benchmark.target(target_dir, n) for n in benchmark.default_sets}
        names = options.dataset or [n for n in targets if targets[n].is_dir()] or list(targets)
        if not names:
            raise InputError(f"{target_dir}: holds no image; expected a folder of target images")
        folders = {n: (result_dir / n, benchmark.target(target_dir, n)) for n in names}
        if len(names) == 1 and not (result_dir / names[0]).is_dir() and holds_images(result_dir):
            folders = {names[0]: (result_dir, benchmark.target(target_dir, names[0]))}

    own = {name: benchmark.sets[name].protocol for name in folders if name in benchmark.sets}
    if len(set(own.values())) > 1 and not options.protocol:
        pairs = ", ".join(f"{name} by {protocol}" for name, protocol in own.items())
        raise InputError(f"--dataset: the sets are scored differently ({pairs}); score them apart")
    protocol = options.protocol or next(iter(own.values()), benchmark.protocol)

    # A gap in the last set shows before the first score.
    pairs_of = {name: pair_by_name(*both) for name, both in folders.items()}
    settings = {name: read_settings(results, result_dir) for name, (results, _) in folders.items()}
    scores = {
        name: score_all(
            {result.stem: partial(_read_pair, result, target) for result, target in pairs},
            folders[name][0],
            protocol,
            options.jobs,
        )
        for name, pairs in pairs_of.items()
    }
    report(benchmark, scores, protocol, settings, options.model, options.csv)


def report(
    benchmark: Benchmark,
    scores: Mapping[str, Sequence[Score]],
    protocol: str,
    settings: Mapping[str, dict | None],
    model: str | None = None,
    csv: Path | None = None,
) -> None:
    """Print the protocol, the settings and the table of the sets, beside it the scores published of
    `model` (default: the one in the settings) where they may be compared: not with those of a
    network of another size. Write every image's score to the file `csv`."""
    named = {str(of_set["model"]) for of_set in settings.values() if of_set and "model" in of_set}
    model = model or (named.pop() if len(named) == 1 else "DGUNet")
    of_published_size = {n: s for n, s in scores.items() if "sizes" not in (settings[n] or {})}
    published = benchmark.published(of_published_size, protocol, model)
    text = describe_settings(settings)
    print(f"{benchmark.task}, protocol {protocol}: {describe(protocol)}")
    print(f"{text}\n\n{format_table(scores, published, f'published {model}')}")
    if csv:
        write_csv(csv, scores, protocol, text)
        print(f"\nscores of every image: {csv}")


def _read_pair(result: Path, target: Path) -> tuple[np.ndarray, np.ndarray]:
    return without_alpha(read_image(result)), without_alpha(read_image(target))


def score_all(
    loads: Mapping[str, Callable[[], tuple[np.ndarray, np.ndarray]]],
    source: str | Path,
    protocol: str,
    jobs: int,
) -> list[Score]:
    """Return the scores of images by name, which `loads` gives as restored and target image, `jobs`
    at a time. `source`, where they come from, is for messages. Raises as `collect` does."""

    def score(name: str) -> Score | Exception:
        try:
            return score_image(name, protocol, *loads[name]())
        except (InputError, OSError) as error:
            return error

    name = printable(Path(source).name)
    # disable=None: no bar where standard error is no terminal
    outcomes = tqdm(in_parallel(score, loads, jobs), name, len(loads), unit="image", disable=None)
    return collect(dict(zip(loads, outcomes, strict=True)), source)


def collect(outcomes: Mapping[str, Score | Exception], source: str | Path) -> list[Score]:
    """Return the scores among outcomes by image. Images smaller than the window of SSIM have none:
    they are left out, and named on standard error. Raises `InputError` that names the first few if
    images have no score for another reason, or none has one."""
    scores = [outcome for outcome in outcomes.values() if isinstance(outcome, Score)]
    small = [name for name, outcome in outcomes.items() if isinstance(outcome, TooSmall)]
    problems = [o for o in outcomes.values() if not isinstance(o, (Score, TooSmall))]
    if problems:
        raise InputError(
            f"{len(problems)} of {len(outcomes)} results in {source} cannot be scored: "
            f"{first_few(problems)}"
        )
    found = f"{printable(source)}: {len(small)} images are smaller than the window of SSIM"
    if not scores:
        raise InputError(f"{found}; expected some that can be scored")
    if small:
        print(f"{found}, and left out of the scores: {first_few(small)}", file=sys.stderr)
    return scores


def without_alpha(image: np.ndarray) -> np.ndarray:
    """Return grey or RGB pixels as they are; alpha is dropped."""
    return image[..., :3] if image.ndim == 3 else image


def holds_images(folder: Path) -> bool:
    """Tell whether a folder itself holds images."""
    return folder.is_dir() and any(
        path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
        for path in folder.iterdir()
    )
