"""Check a data folder before training on it: every image is decoded.

    python -m dgunet.tools.check Deblurring/Datasets/train

The program checks the given folder and all folders below it that hold `input/` or `target/`; where
there are none, the folder's own photographs. It lists images without a partner, two images of one
name, files that cannot be read, and pairs that differ in size, channels or bits. It exits with 2 if
it finds any of these.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from tqdm import tqdm

from dgunet.base.errors import InputError, command, first_few, printable
from dgunet.base.options import new_parser
from dgunet.base.threads import in_parallel
from dgunet.images.files import list_images, read_image

PARTS = ("input", "target")


def find_sets(folder: str | Path) -> list[Path]:
    """Return the folders that hold `input/` or `target/`, in or below `folder`; the folder itself
    if there are none."""
    folder = Path(folder)
    parents = {part.parent for name in PARTS for part in folder.rglob(name) if part.is_dir()}
    return sorted(parents) or [folder]


def check_folder(folder: str | Path, *, jobs: int = -1) -> tuple[str, list[str]]:
    """Decode every image of a folder of pairs (`input/`, `target/`) or of photographs, `jobs` at
    once. Return what was found in a line: the number of pairs or images, and of each kind of image,
    such as `1280×720 RGB, 8 bits`; and a line for each problem. Raises `InputError` if it is no
    such folder."""
    groups, problems = _group(Path(folder))
    files = [path for paths in groups for path in paths]
    # Threads suffice: decoding runs outside Python.
    described = tqdm(
        in_parallel(describe, files, jobs), printable(folder), len(files), disable=None
    )
    kinds = {}
    for path, (kind, problem) in zip(files, described, strict=True):
        if problem:
            problems.append(problem)
        else:
            kinds[path] = kind

    for paths in groups:
        found = [kinds[path] for path in paths if path in kinds]
        if len(found) == 2 and found[0] != found[1]:
            problems.append(f"{paths[0]}: {found[0]}, but its target {found[1]}")
    pairs = sum(len(paths) == 2 for paths in groups)
    what = f"{pairs} pairs" if pairs else f"{len(files)} images"
    counts = [f"{count} of {kind}" for kind, count in Counter(kinds.values()).most_common()]
    return f"{what} ({first_few(counts, 4)}), {len(problems)} problems", problems


def _group(folder: Path) -> tuple[list[list[Path]], list[str]]:
    """Return the images of a folder, those of one name together, and what spoils pairs."""
    if not any((folder / part).is_dir() for part in PARTS):
        return [[path] for path in list_images(folder)], []
    problems = []
    by_stem: dict[str, dict[str, Path]] = defaultdict(dict)
    for part in PARTS:
        try:
            paths = list_images(folder / part)
        except InputError as error:
            problems.append(str(error))
            continue
        for path in paths:
            other = by_stem[path.stem].setdefault(part, path)
            if other != path:
                problems.append(f"{path}: has the same name as {other.name} but for the suffix")
    for found in by_stem.values():
        if len(found) == 1:
            [(part, path)] = found.items()
            partner = PARTS[part == "input"]
            problems.append(f"{path}: has no partner of this name in {partner}/")
    return [list(found.values()) for found in by_stem.values()], problems


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
    count = 0
    for folder in find_sets(args.folder):
        found, problems = check_folder(folder, jobs=args.jobs)
        for problem in problems:
            print(f"  {printable(problem)}")
        print(f"{printable(folder)}: {found}")
        count += len(problems)
    if count:
        raise InputError(f"{args.folder}: {count} problems, listed above")


if __name__ == "__main__":
    main()
