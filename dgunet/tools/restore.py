"""Restore your own images, with any task's weights: files, folders or patterns.

    python demo.py --task Denoising --input_dir photo.jpg --result_dir out
    python demo.py --task Deraining --input_dir holiday --result_dir out --recursive
    python demo.py --weights FILE --input_dir "scans/*.tif" --result_dir out --stages

Without --weights, the task's bundled pretrained weights are used. They are trained on synthetic
degradations, which the first line of output names; of other degradations expect less. Of an image
whose noise is unlike that of training, a warning says what to use instead.

Results have the inputs' names, folder structure, format, bit depth and colour mode; what a format
cannot keep, dgunet/images/photographs.py says. An interrupted run goes on where it stopped: images
whose result is there, made with the same settings, are skipped. Files that cannot be read are
reported and skipped too. With weights of compressive sensing, images are measured and
reconstructed, each channel on its own.

Exit code: 0 all images are restored; 1 some failed; 2 none could be restored, or bad arguments;
130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import glob
import io
import itertools
import math
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import iter_modules
from typing import NamedTuple

import numpy as np
from natsort import natsorted
from PIL import Image
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from dgunet.base.errors import InputError, command, first_few, printable
from dgunet.base.options import new_parser
from dgunet.base.threads import overlapped, thread_count
from dgunet.images.files import IMAGE_SUFFIXES, to_uint8, write_image
from dgunet.images.noise import noise_level
from dgunet.images.photographs import MAX_PIXELS, read_photo, write_photo
from dgunet.inference.memory import keep_freed_memory
from dgunet.inference.options import add_restorer_options, restorer_options
from dgunet.inference.restorer import Restorer
from dgunet.model.network import Network
from dgunet.model.pretrained import (
    PUBLISHED_WEIGHTS,
    advice,
    default_weights,
    find_weights,
    fits,
    read_record,
    trained_for,
)
from dgunet.model.registry import TASKS
from dgunet.scoring.results_folder import ResultsFolder, describe_run
from dgunet.tools.figure import Row, picture_rows

PROGRAM = "demo.py"
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # all further files would fail too


class Job(NamedTuple):
    """An image to restore, and where its result goes."""

    source: Path
    result: Path


@dataclass
class Report:
    """What became of the images."""

    restored: list[tuple[int, ...]] = field(default_factory=list)  # their shapes
    done_before: list[Job] = field(default_factory=list)
    failed: list[Path] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)  # of no known suffix
    unlike: list[Path] = field(default_factory=list)  # noisier or less noisy than in training
    doubled: list[Path] = field(default_factory=list)  # other names of images that are restored
    untried: int = 0
    stopped: bool = False

    def fail(self, source: Path, error: Exception) -> None:
        reason = str(error).removeprefix(f"{source}: ") or type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
            self.stopped = self.stopped or error.errno in DISK_ERRORS
        self.failed.append(source)
        tqdm.write(f"failed: {printable(source)}: {printable(reason, 1000)}", file=sys.stderr)

    @contextlib.contextmanager
    def failing(self, source: Path) -> Iterator[None]:
        """End the block at a failure, and note it."""
        try:
            yield
        except (InputError, OSError, MemoryError) as error:
            self.fail(source, error)

    def note_noise(self, source: Path, pixels: np.ndarray, record: Mapping | None) -> None:
        """Warn of an image whose noise is unlike that of training, in words of the first."""
        noise = noise_level(pixels)
        if not record or fits(record, noise):
            return
        self.unlike.append(source)
        if len(self.unlike) == 1:
            text = f"{printable(source)}: its noise is about σ = {noise:.0f} of 255, the"
            text += f" weights were trained for {trained_for(record)}; the result may be worse"
            text += f" than the input: {advice(record, noise)}"
            tqdm.write(f"warning: {text}", file=sys.stderr)

    @property
    def exit_code(self) -> int:
        if not self.failed:
            return 0
        return 1 if self.restored or self.done_before else 2

    def summary(self, network: Network, result_dir: Path, seconds: float) -> str:
        count = len(self.restored)
        images = "1 image" if count == 1 else f"{count} images"
        lines = [f"restored {images} in {result_dir} ({seconds:.1f} s)"]
        if self.restored and network.channels == 1:
            side = network.multiple_of
            blocks = [
                -(-height // side) * -(-width // side) * math.prod(channels)
                for height, width, *channels in self.restored
            ]
            measured = len(network.A.Phi) * sum(blocks)
            values = sum(map(math.prod, self.restored))
            lines.append(f"measured {measured:,} numbers in place of {values:,} pixel values")
        if self.done_before:
            lines.append(f"skipped {len(self.done_before)} that were restored before")
        if self.left_out:
            kinds = Counter(path.suffix.lower() or "no suffix" for path in self.left_out)
            text = ", ".join(f"{printable(kind)} {n}" for kind, n in kinds.most_common(8))
            lines.append(f"left out {len(self.left_out)} of no known image format: {text}")
        if self.unlike:
            lines.append(f"warned of noise unlike training's: {first_few(self.unlike)}")
        if self.doubled:
            lines.append(f"left out other names of the same files: {first_few(self.doubled)}")
        if self.untried:
            lines.append(f"not tried: {self.untried}")
        if self.failed:
            lines.append(f"failed {len(self.failed)}: {first_few(self.failed)}")
        return "\n".join(lines)


def find_images(
    names: Sequence[str], recursive: bool, result_dir: Path, report: Report
) -> list[tuple[Path, Path]]:
    """Return the images that files, folders and patterns name, each with the path that its result
    has below the result folder: its name, below a folder or pattern its path from there.

    Files that are no images by their suffix, and folders that cannot be read, are noted in
    `report`; the result folder is not searched. Raises `FileNotFoundError` for what does not exist.
    """
    found: dict[Path, tuple[Path, Path]] = {}
    for name in names:
        base = path = Path(name)
        if path.is_dir():
            files = _walk(path, recursive, report)
        elif path.exists():
            found.setdefault(_real(path), (path, Path(path.name)))
            continue
        elif glob.has_magic(name):
            base, files = _matching(path)
        else:
            raise FileNotFoundError(
                f"{name}: does not exist; expected an image, a folder or a pattern"
            )
        results = _real(result_dir)
        nested = results != _real(base) and results.is_relative_to(_real(base))
        for file in natsorted(files, key=str):
            if nested and _real(file).is_relative_to(results):
                continue
            if file.suffix.lower() not in IMAGE_SUFFIXES:
                report.left_out.append(file)
                continue
            relative = Path(os.path.relpath(file, base))
            first, _ = found.setdefault(_real(file), (file, relative))
            if os.path.abspath(first) != os.path.abspath(file):
                report.doubled.append(file)
    if not found:
        hint = "" if recursive else " (--recursive looks into their folders)"
        raise InputError(
            f"{', '.join(names)}: found no image{hint}; expected {' '.join(IMAGE_SUFFIXES)}"
        )
    return list(found.values())


def _walk(folder: Path, recursive: bool, report: Report) -> list[Path]:
    """Return the files in a folder, hidden ones left out."""
    os.scandir(folder).close()  # raises where the folder itself cannot be read
    files = []
    for parent, folders, names in os.walk(
        folder, onerror=lambda e: report.fail(Path(e.filename), e)
    ):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return files


def _matching(pattern: Path) -> tuple[Path, list[Path]]:
    """Return the folder in which a pattern's wildcards begin, and the files that it names, hidden
    ones only where it names them. Its ** does not go through links to folders, which may go round.
    """
    folders = itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts[:-1])
    base = Path(*folders)
    names = pattern.relative_to(base)
    found = [path for path in base.glob(str(names)) if path.is_file()]
    if not any(map(_hidden, names.parts)):
        found = [path for path in found if not any(map(_hidden, path.relative_to(base).parts))]
    return base, found


def _hidden(name: str) -> bool:
    return name.startswith(".") and name != ".."


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # `Path.resolve` raises for links that go round


def plan(
    images: Sequence[tuple[Path, Path]], result_dir: Path, report: Report, stages: bool = False
) -> list[Job]:
    """Return the images with where their results go, in natural order of the latter.

    An image whose result would lie outside `result_dir`, where another's lies or (with `stages`)
    among the stages of another fails. Raises `InputError` where results would replace inputs.
    """
    root = _real(result_dir)
    sources = {_real(source) for source, _ in images}
    folders = {source.parent for source in sources} if stages else set()
    taken: dict[Path, Path] = {}  # where results and folders of stages will lie → of which image
    jobs = []
    for source, relative in natsorted(images, key=lambda image: str(image[1])):
        result = result_dir / relative
        place = _real(result.parent) / result.name
        if place in sources or stages_folder(place) in folders:
            raise InputError(
                f"{result}: would replace an image to be restored; choose another --result_dir"
            )
        problem = ""
        if not place.is_relative_to(root) or ".." in relative.parts:
            problem = f"lie outside {result_dir}"
        elif place in taken:
            problem = f"replace that of {taken[place]}"
        elif place.parent in taken:
            problem = f"lie among the stages of {taken[place.parent]}"
        if problem:
            report.fail(source, InputError(f"its result, {result}, would {problem}"))
            continue
        jobs.append(Job(source, result))
        taken[place] = source
        if stages:
            taken[stages_folder(place)] = source
    return jobs


def stages_folder(result: Path) -> Path:
    """Return the folder for the stages of an image whose result is that file."""
    return result.with_name(f"{result.name}.stages")


def describe_weights(path: Path) -> str:
    """Return what the record beside a file of weights says of their training; nothing without."""
    record = read_record(path)
    if record is None:
        return ""
    text = f"weights {printable(path.stem)}: trained for "
    if "cs_ratio" in record:
        return text + trained_for(record)
    return f"{text}synthetic {trained_for(record)}; of other degradations expect less"


def restore_images(
    restorer: Restorer, jobs: Sequence[Job], options: argparse.Namespace, report: Report
) -> None:
    """Restore the images into their files; what fails is noted in `report`."""
    limit = options.max_megapixels * 1e6 or None  # pixels
    record = read_record(options.weights)

    def read(job):
        with report.failing(job.source):
            return read_photo(job.source, limit)

    def compute(job, photo):
        if photo is None:
            return None
        report.note_noise(job.source, photo.pixels, record)
        with report.failing(job.source):
            if options.stages:
                return photo, restorer.stages(photo.pixels)
            return photo, [restorer(photo.pixels)]

    def write(job, made):
        if made is None:
            return
        photo, stages = made
        with report.failing(job.source):
            if options.stages:
                write_stages(stages_folder(job.result), photo.pixels, stages)
            write_photo(job.result, photo, stages[-1])
            report.restored.append(photo.pixels.shape)

    with tqdm(total=len(jobs), unit="image", disable=None, dynamic_ncols=True) as bar:
        restorer.progress = lambda done, of: bar.set_postfix_str(f"tile {done} of {of}" * (of > 1))
        done = overlapped(jobs, read, compute, write, options.jobs, ahead=options.jobs)
        with contextlib.closing(done):
            for count, _ in enumerate(done, 1):
                bar.update()
                if report.stopped:
                    report.untried = len(jobs) - count
                    break


def write_stages(folder: Path, degraded: np.ndarray, stages: Sequence[np.ndarray]) -> None:
    """Write the stage images, 1.png, 2.png, …, and contact_sheet.png, on which each one's caption
    says how far it is from the one before (root mean square, of 255). Raises `InputError` for a
    link in the folder's place, which may lead anywhere."""
    if folder.is_symlink():
        raise InputError(f"{folder}: is a link; expected a folder, or nothing")
    for number, image in enumerate(stages, 1):
        write_image(folder / f"{number}.png", image)
    pictures = [("input", _thumbnail(degraded))]
    for number, (before, image) in enumerate(zip([degraded, *stages], stages, strict=False), 1):
        change = np.sqrt(np.mean((image.astype(np.float32) - before) ** 2))
        change *= 255 / np.iinfo(image.dtype).max
        pictures.append((f"stage {number}, changed by {change:.2f}", _thumbnail(image)))
    columns = math.ceil(len(pictures) / math.ceil(len(pictures) / 4))
    starts = range(0, len(pictures), columns)
    rows = [Row("", "", pictures[start : start + columns]) for start in starts]
    picture_rows(rows, [folder / "contact_sheet.png"])


def _thumbnail(image: np.ndarray) -> np.ndarray:
    small = Image.fromarray(to_uint8(image))
    small.thumbnail((400, 400))
    return np.asarray(small)


def choose_weights(weights: str | None, task: str | None) -> Path:
    """Return the file that --weights says, or else the task's default. Raises `InputError` where
    neither is given, `FileNotFoundError` where the default is not there."""
    if weights is not None:
        return find_weights(weights)
    if task is not None:
        return default_weights(task)
    raise InputError(
        f"--task or --weights is missing; expected --task {'|'.join(TASKS)}, for its bundled "
        "pretrained weights, or --weights FILE: your own checkpoint, or a published one from "
        f"{PUBLISHED_WEIGHTS}"
    )


def other_commands() -> str:
    """Return where the package's other programs are, for the end of --help."""
    tools = sorted(module.name for module in iter_modules([str(Path(__file__).parent)]))
    return (
        "other commands, each with --help:\n"
        "  python -m dgunet.TASK.PROGRAM   PROGRAM: train, test, evaluate\n"
        f"                                  TASK: {', '.join(TASKS)}\n"
        f"  python -m dgunet.tools.NAME     NAME: {', '.join(tools)}"
    )


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__, epilog=other_commands())
    add = parser.add_argument
    text = "your own or a published checkpoint, or the name of bundled weights"
    add("--weights", metavar="FILE", help=f"{text} (that of the task)")
    add("--task", choices=TASKS, help="which task; with --weights: if the checkpoint fits several")
    add("--input_dir", nargs="+", required=True, metavar="PATH", help="files, folders, patterns")
    add("--result_dir", type=Path, default=Path("results"), metavar="DIR", help="(%(default)s)")
    add_restorer_options(parser)
    text = "threads that read and write, and images held by them (%(default)s)"
    add("--jobs", type=int, default=min(4, os.cpu_count() or 1), metavar="N", help=text)
    text = "also write every stage's image and a contact sheet, into NAME.stages"
    add("--stages", action="store_true", help=text)
    text = "look into the folders of folders, though not through links to folders"
    add("--recursive", action="store_true", help=text)
    add("--overwrite", action="store_true", help="restore again what is in the result folder")
    text = "refuse larger images, which may be made to fill the memory (%(default)g; 0: no limit)"
    add("--max_megapixels", type=float, default=MAX_PIXELS / 1e6, metavar="N", help=text)
    options = parser.parse_args(arguments)
    options.weights = choose_weights(options.weights, options.task)
    options.jobs = thread_count(options.jobs)
    if not 0 <= options.max_megapixels < math.inf:
        raise InputError(f"--max_megapixels is {options.max_megapixels}; expected 0 or more")
    return options


@command
def main(arguments: Sequence[str] | None = None) -> None:
    options, report, start = parse_arguments(arguments), Report(), time.monotonic()
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be any bytes
    warnings.filterwarnings("ignore", category=UserWarning)  # of libraries, on odd files
    Image.MAX_IMAGE_PIXELS = None  # --max_megapixels is the limit

    if options.result_dir.exists() and not options.result_dir.is_dir():
        raise NotADirectoryError(f"{options.result_dir}: is a file; expected a folder")
    images = find_images(options.input_dir, options.recursive, options.result_dir, report)
    jobs = plan(images, options.result_dir, report, options.stages)
    restorer = Restorer.from_checkpoint(
        options.weights, task=options.task, **restorer_options(options)
    )
    if text := describe_weights(options.weights):
        print(text, flush=True)
    settings = {**describe_run(restorer, options, PROGRAM), "stages": options.stages}
    folder = ResultsFolder(options.result_dir, settings)
    report.done_before = folder.finished(jobs, options.overwrite)
    done = set(report.done_before)
    jobs = [job for job in jobs if job not in done]
    try:
        with folder.writing(), logging_redirect_tqdm():
            restore_images(restorer, jobs, options, report)
    except KeyboardInterrupt:
        without = ", without --overwrite," if options.overwrite else ""
        print(f"the same command{without} goes on from here", file=sys.stderr)
        raise
    finally:
        print(report.summary(restorer.network, options.result_dir, time.monotonic() - start))
    if report.exit_code:
        sys.exit(report.exit_code)


if __name__ == "__main__":
    main()
