"""Restoring test sets and scoring the results: what the tasks' `test.py` share.

Results of a set go to `<result_dir>/<set>`, a PNG under each input's name. Beside them lie
`settings.json`, which says how they were made, and, where there are targets, `scores.csv`.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dgunet.base.errors import InputError, first_few, printable
from dgunet.base.options import new_parser
from dgunet.base.threads import overlapped, thread_count
from dgunet.images.files import list_images, pair_by_name, read_image, to_uint8, write_image
from dgunet.images.sizes import check_sizes, image_size
from dgunet.inference.memory import keep_freed_memory
from dgunet.inference.options import add_restorer_options, restorer_options
from dgunet.inference.restorer import Restorer
from dgunet.model.pretrained import PUBLISHED_WEIGHTS, find_weights
from dgunet.scoring.evaluate import Benchmark, collect, holds_images, report, without_alpha
from dgunet.scoring.protocols import Score, mean_score, score_image
from dgunet.scoring.results_folder import ResultsFolder, describe_run, describe_settings
from dgunet.scoring.tables import format_images, write_csv

_LONGEST_IMAGE_TABLE = 20  # rows; of larger sets only the means are printed


def make_parser(
    description: str, benchmark: Benchmark, **restorer_defaults
) -> argparse.ArgumentParser:
    """Return the options that every `test.py` has; those of `Restorer` have the defaults given.
    Images are restored whole, as published, unless a tile is given."""
    parser = new_parser(description)
    add = parser.add_argument
    text = "your own or a published checkpoint, or the name of bundled weights"
    add("--weights", metavar="FILE", help=text)
    text = "the data folder, or one of images (default: %(default)s)"
    add("--input_dir", type=Path, default=benchmark.home / "Datasets", metavar="DIR", help=text)
    text = "results go to a folder in it for each set (default: %(default)s)"
    add("--result_dir", type=Path, default=benchmark.home / "results", metavar="DIR", help=text)
    add("--overwrite", action="store_true", help="replace results of another program")
    text = "threads that read, write and score (default: one per core)"
    add("--jobs", type=int, default=-1, metavar="N", help=text)
    add_restorer_options(parser, **{"tile": 0, **restorer_defaults})
    text = "--device cuda:N, as the published programs call it"
    cuda, unset = "cuda:{}".format, argparse.SUPPRESS
    add("--gpus", dest="device", type=cuda, default=unset, metavar="N", help=text)
    return parser


def run_benchmark(benchmark: Benchmark, description: str) -> None:
    """Be the `test.py` of a task whose sets are all folders of images."""
    parser = make_parser(description, benchmark)
    names, defaults = ", ".join(benchmark.sets), ", ".join(benchmark.default_sets)
    text = f"which of {names} (default: {defaults}, unless --input_dir holds images)"
    sets = list(benchmark.sets)
    parser.add_argument("--dataset", nargs="+", choices=sets, metavar="SET", help=text)
    options = parser.parse_args()
    restorer = load_restorer(benchmark, options)
    run_sets(benchmark, restorer, find_sets(benchmark, options.input_dir, options.dataset), options)


def load_restorer(benchmark: Benchmark, options: argparse.Namespace) -> Restorer:
    """Return a restorer with `options.weights`, of the benchmark's task, as the options say. Raises
    `InputError` for options that make no sense and weights of another task."""
    task = benchmark.task
    if options.weights is None:
        raise InputError(
            f"--weights is missing; expected a checkpoint of {task}: one that {task}/train.py "
            f"wrote, or a published one from {PUBLISHED_WEIGHTS}"
        )
    options.jobs = thread_count(options.jobs)
    keep_freed_memory()
    options.weights = find_weights(options.weights)
    return Restorer.from_checkpoint(options.weights, task=task, **restorer_options(options))


@dataclass
class ImageSet:
    """Images to restore, and what their results are compared with. Sets of another kind, such as
    blocks in a MAT file, override what differs."""

    name: str  # also of the results' folder
    inputs: Sequence[Any]  # restored one after the other: image files, of different stems
    protocol: str  # the name of the protocol that scores them
    targets: Mapping[Path, Path] | None = None  # input → its target image
    settings: Mapping[str, object] = field(default_factory=dict)  # of `settings.json`

    inputs_are_files = True  # to be checked before anything is computed
    in_8_bits = True  # results are scored as they are written; False: in float, before rounding
    scores_inputs = True  # False: there is no degraded image

    @property
    def sources(self) -> list[Path]:
        """The folders that the inputs and targets lie in."""
        files = [*self.inputs, *(self.targets or {}).values()]
        return list(dict.fromkeys(path.parent for path in files))

    def label(self, item: Path) -> str:
        """Return the name of an input, also of its result."""
        return item.stem

    def read(self, item: Path) -> np.ndarray:
        """Return the degraded image, H×W[×C]."""
        return read_image(item)

    def target(self, item: Path) -> np.ndarray | None:
        """Return the target, H×W[×3], None where there is none."""
        return read_image(self.targets[item]) if self.targets else None

    def restore(self, restorer: Restorer, degraded: np.ndarray) -> np.ndarray:
        """Return the restored image, float32 in [0,1]."""
        return restorer(as_floats(degraded))

    def files(self, folder: Path) -> list[Path]:
        """Return the files that `write` and `finish` make."""
        return [folder / f"{self.label(item)}.png" for item in self.inputs]

    def write(self, folder: Path, item: Path, restored: np.ndarray) -> None:
        """Write the result of an input; called in a thread, in any order."""
        write_image(folder / f"{self.label(item)}.png", to_uint8(restored))

    def finish(self, folder: Path) -> None:
        """Write what is left when all inputs are restored."""

    def check(self) -> None:
        """Raise `InputError` for what would only be found out after hours: inputs of one stem,
        of another size than their targets, and files that are no images."""
        stems = Counter(path.stem for path in self.inputs)
        if doubled := [path.name for path in self.inputs if stems[path.stem] > 1]:
            raise InputError(
                f"{self.inputs[0].parent}: {len(doubled)} images share their name but for the "
                f"suffix, and so would their results: {first_few(doubled)}"
            )
        if self.targets:
            check_sizes(list(self.targets.items()))
        else:
            for path in self.inputs:
                image_size(path)


def find_sets(
    benchmark: Benchmark, input_dir: Path, names: Sequence[str] | None = None
) -> list[ImageSet]:
    """Return the sets to restore: those named; else `input_dir` itself if it holds `input/` or
    images; else those of the benchmark's default sets that exist. A set's inputs lie in `input/`
    beside the targets. Raises `InputError` for a missing folder."""
    if not names and (alone := folder_set(input_dir, benchmark.protocol)):
        return [alone]
    targets = {n: benchmark.target(input_dir, n) for n in names or benchmark.default_sets}
    if not names:
        targets = {n: place for n, place in targets.items() if place.with_name("input").is_dir()}
    if not targets:
        found = "found no images" if input_dir.is_dir() else "does not exist"
        sets = f" or a set ({', '.join(benchmark.default_sets)})" * bool(benchmark.default_sets)
        raise InputError(
            f"{input_dir}: {found}; expected images in it, in input/{sets} (--input_dir DIR)"
        )
    return [
        _from_folders(name, place.with_name("input"), place, benchmark.sets[name].protocol)
        for name, place in targets.items()
    ]


def folder_set(folder: Path, protocol: str) -> ImageSet | None:
    """Return the set of a folder with `input/` (and `target/`), or with images alone; None for any
    other folder."""
    name = folder.resolve().name
    if (folder / "input").is_dir():
        return _from_folders(name, folder / "input", folder / "target", protocol)
    return ImageSet(name, list_images(folder), protocol) if holds_images(folder) else None


def _from_folders(name: str, inputs: Path, targets: Path, protocol: str) -> ImageSet:
    pairs = dict(pair_by_name(inputs, targets)) if targets.is_dir() else None
    return ImageSet(name, list(pairs or list_images(inputs)), protocol, pairs)


def run_sets(
    benchmark: Benchmark, restorer: Restorer, sets: Sequence[ImageSet], options: argparse.Namespace
) -> None:
    """Restore the sets into folders below `options.result_dir`, then report their scores. Raises
    `InputError`, before anything is computed, for unfit inputs, sets of one name, and files in the
    way (`ResultsFolder.claim`)."""
    names = [images.name for images in sets]
    if doubled := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise InputError(f"two sets are called {first_few(doubled)}; test them apart")
    settings, folders = describe_run(restorer, options, f"{benchmark.task}/test.py"), {}
    for images in sets:
        # The only set's folder may be named already, as in the published commands.
        named = len(sets) == 1 and options.result_dir.name == images.name
        path = options.result_dir if named else options.result_dir / images.name
        folder = ResultsFolder(path, {**settings, **images.settings})
        if images.inputs_are_files:
            images.check()
        folder.claim(images.files(path), options.overwrite, images.sources)
        folders[images.name] = folder

    by_protocol: dict[str, dict[str, list[Score]]] = {}
    inputs: dict[str, list[Score]] = {}
    for images in sets:
        folder = folders[images.name]
        folder.scores.unlink(missing_ok=True)
        restorer.self_ensemble = bool(folder.settings["self_ensemble"])
        with folder.writing():
            of_results, of_inputs = _restore_set(restorer, images, folder.path, options.jobs)
            if restorer.largest_tile < math.inf:  # the memory was not enough for what was asked
                folder.settings["tile"] = restorer.largest_tile
        shown = printable(images.name)
        print(f"{shown}: {len(images.inputs)} images restored in {printable(folder.path)}")
        if not of_results:
            print(f"{shown}: no targets, no scores")
            continue
        scores = collect(of_results, folder.path)
        by_protocol.setdefault(images.protocol, {})[images.name] = scores
        try:
            if of_inputs:
                inputs[images.name] = collect(of_inputs, images.name)
        except InputError as error:  # RealBlur's alignment can fail on an input alone
            print(f"{shown}: inputs not scored: {printable(error)}")
    for protocol, scores_of in by_protocol.items():
        _report(benchmark, protocol, scores_of, inputs, folders)


def _restore_set(
    restorer: Restorer, images: ImageSet, folder: Path, jobs: int
) -> tuple[dict[str, Score | Exception], dict[str, Score | Exception]]:
    """Restore a set into a folder. Return the outcomes of scoring the results and the inputs."""
    of_results: dict[str, Score | Exception] = {}
    of_inputs: dict[str, Score | Exception] = {}

    def compute(item, degraded):
        try:
            return degraded, images.restore(restorer, degraded)
        except InputError as error:
            raise InputError(f"{images.name}/{images.label(item)}: {error}") from error

    def write(item, computed) -> None:
        degraded, restored = computed
        images.write(folder, item, restored)
        target, name = images.target(item), images.label(item)
        if target is None:
            return
        target = without_alpha(target)
        result = to_uint8(restored) if images.in_8_bits else restored
        of_results[name] = score_image(name, images.protocol, result, target)
        if images.scores_inputs:
            degraded = without_alpha(degraded)
            degraded = degraded.clip(0, 1) if degraded.dtype.kind == "f" else degraded
            of_inputs[name] = score_image(name, images.protocol, degraded, target)

    done = overlapped(images.inputs, images.read, compute, write, jobs)
    # disable=None: no bar where standard error is not a terminal
    for _ in tqdm(done, printable(images.name), len(images.inputs), unit="image", disable=None):
        pass
    images.finish(folder)
    names = [images.label(item) for item in images.inputs]
    of_results, of_inputs = (
        {name: of[name] for name in names if name in of} for of in (of_results, of_inputs)
    )
    return of_results, of_inputs


def _report(
    benchmark: Benchmark,
    protocol: str,
    scores: Mapping[str, Sequence[Score]],
    inputs: Mapping[str, Sequence[Score]],
    folders: Mapping[str, ResultsFolder],
) -> None:
    """Write `scores.csv` into each set's folder (the degraded images as the set "NAME input") and
    print the tables. `inputs` may lack sets."""
    for name in scores:
        rows = {name: scores[name]} | ({f"{name} input": inputs[name]} if name in inputs else {})
        text = describe_settings({name: folders[name].settings})
        write_csv(folders[name].scores, rows, protocol, text)
    print()
    report(benchmark, scores, protocol, {name: folders[name].settings for name in scores})
    print()
    for name in scores:
        columns = {"input": inputs[name]} if name in inputs else {}
        if len(scores[name]) <= _LONGEST_IMAGE_TABLE:
            print(f"{printable(name)}, PSNR (dB) / SSIM of every image:")
            print(format_images(columns | {"restored": scores[name]}) + "\n")
    means = {n: [mean_score(part[n]) for part in (inputs, scores)] for n in scores if n in inputs}
    if len(means) > 1:
        means["mean"] = [mean_score(part) for part in zip(*means.values(), strict=True)]
    for name, (degraded, restored) in means.items():
        # Of identical images both are inf.
        gain = 0.0 if restored.psnr == degraded.psnr else restored.psnr - degraded.psnr
        text = f"input {degraded.psnr:.2f} dB, restored {restored.psnr:.2f} dB: {gain:+.2f} dB"
        print(f"{printable(name)}: {text}")
    print("scores of every image:", ", ".join(printable(folders[name].scores) for name in scores))


def as_floats(image: np.ndarray) -> np.ndarray:
    """Return grey or RGB pixels as float32; of integers in [0,1], without alpha."""
    image = without_alpha(image)
    if image.dtype.kind == "f":
        return image.astype(np.float32, copy=False)
    return np.divide(image, np.iinfo(image.dtype).max, dtype=np.float32)
