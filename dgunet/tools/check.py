"""Check a data folder before training on it: every image is decoded.

    python -m dgunet.tools.check Deblurring/Datasets/train

The program checks the given folder and all folders below it that hold `input/` or `target/`; where
there are none, the folder's own photographs. It lists images without a partner, two images of one
name, files that cannot be read, and pairs that differ in size, channels or bits. It exits with 2 if
it finds any of these.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from dgunet.base.errors import InputError, command, first_few, printable
from dgunet.base.options import new_parser
from dgunet.base.threads import in_parallel
from dgunet.images.files import list_images, read_image

PARTS = ("input", "target")


@dataclass
class Report:
    """What `check_folder` found: the number of images, of pairs and of each kind of image (such as
    `1280×720 RGB, 8 bits`), and a line for each problem."""

    folder: Path
    images: int = 0
    pairs: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        what = f"{self.pairs} pairs" if self.pairs else f"{self.images} images"
        kinds = [f"{count} of {kind}" for kind, count in self.kinds.most_common()]
        found = f"{what} ({first_few(kinds, 4)}), {len(self.problems)} problems"
        return f"{printable(self.folder)}: {found}"


def find_sets(folder: str | Path) -> list[Path]:
    """Return the folders that hold `input/` or `target/`, in or below `folder`; the folder itself
    if there are none."""
    folder = Path(folder)
    parents = {part.parent for name in PARTS for part in folder.rglob(name) if part.is_dir()}
    return sorted(parents) or [folder]


def check_folder(folder: str | Path, *, jobs: int = -1) -> Report:
    """Decode every image of a folder of pairs (`input/`, `target/`) or of photographs, `jobs` at
    once, and return what was found. Raises `InputError` if it is no such folder."""
    report = Report(Path(folder))
    groups = _group(report)
    files = [path for paths in groups for path in paths]
    # Threads suffice: decoding runs outside Python.
    described = tqdm(
        in_parallel(describe, files, jobs), printable(folder), len(files), disable=None
    )
    kinds = {}
    for path, (kind, problem) in zip(files, described, strict=True):
        if problem:
            report.problems.append(problem)
        else:
            kinds[path] = kind
            report.kinds[kind] += 1

    report.images = len(files)
    report.pairs = sum(len(paths) == 2 for paths in groups)
    for paths in groups:
        found = [kinds[path] for path in paths if path in kinds]
        if len(found) == 2 and found[0] != found[1]:
            report.problems.append(f"{paths[0]}: {found[0]}, but its target {found[1]}")
    return report


def _group(report: Report) -> list[list[Path]]:
    """Return the images of a folder, those of one name together, and report what spoils pairs."""
    folder = report.folder
    if not any((folder / part).is_dir() for part in PARTS):
        return [[path] for path in list_images(folder)]
    by_stem: dict[str, dict[str, Path]] = defaultdict(dict)
    for part in PARTS:
        try:
            paths = list_images(folder / part)
        except InputError as error:
            report.problems.append(str(error))
            continue
        for path in paths:
            other = by_stem[path.stem].setdefault(part, path)
            if other != path:
                problem = f"has the same name as {other.name} but for the suffix"
                report.problems.append(f"{path}: {problem}")
    for found in by_stem.values():
        if len(found) == 1:
            [(part, path)] = found.items()
            partner = PARTS[part == "input"]
            report.problems.append(f"{path}: has no partner of this name in {partner}/")
    return [list(found.values()) for found in by_stem.values()]


def describe(path: Path) -> tuple[str, str]:
    """Return what kind of image a file is, and what is wrong if it cannot be read."""
    try:
        image = read_image(path)
    except (InputError, OSError) as error:
        return "", " ".join(str(error).split())
    height, width, *channels = image.shape
    colours = {1: "grey", 3: "RGB", 4: "RGBA"}[channels[0] if channels else 1]
    return f"{width}×{height} {colours}, {8 * image.itemsize} bits", ""


@command
def main(arguments: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("folder", help="data folder: input/ and target/, or photographs")
    text = "images decoded at once (default: one per core)"
    parser.add_argument("--jobs", type=int, default=-1, help=text)
    args = parser.parse_args(arguments)
    problems = 0
    for folder in find_sets(args.folder):
        report = check_folder(folder, jobs=args.jobs)
        for problem in report.problems:
            print(f"  {printable(problem)}")
        print(report)
        problems += len(report.problems)
    if problems:
        raise InputError(f"{args.folder}: {problems} problems, listed above")


if __name__ == "__main__":
    main()
