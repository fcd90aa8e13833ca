"""Arrange a downloaded dataset into the folders that train.py and test.py read.

    python -m dgunet.tools.arrange GoPro GOPRO_Large Deblurring/Datasets

The program looks in SOURCE, at any depth, for (in brackets: what it makes of it in DEST):

    GoPro       train/SCENE/ and test/SCENE/ with blur (--gamma: blur_gamma) and sharp
                (train, GoPro/test, and the latter as val)
    HIDE        a folder test, with sub-folders or without, and a folder GT (HIDE/test)
    RealBlur_J  RealBlur_J_test_list.txt, RealBlur_J_train_list.txt and the files they list
    RealBlur_R  (RealBlur_J/test, RealBlur_J/train); the same for RealBlur_R
    Rain13k     folders with input and target, called Rain13K or train, Rain100L, Rain100H, Test100,
                Test1200, Test2800 (train, Rain100L ..., and Rain100L as val)
    SIDD        pairs ...NOISY_SRGB_010.PNG and ...GT_SRGB_010.PNG (SIDD/train);
                ValidationNoisyBlocksSrgb.mat, ValidationGtBlocksSrgb.mat
                (SIDD/test, and as PNG val)
    DND         info.mat with images_srgb/0001.mat ... 0050.mat (DND/test)

The two images of a pair get one name, in input/ and in target/; it includes the names of their
folders where file names alone are not unique. Files are hard links to those in SOURCE (they take no
space, but a change to one changes the other), or copies with --copy and where the disk has no
links. Nothing is ever overwritten, nothing outside SOURCE is read, and an interrupted run continues
when it is started again.
"""

from __future__ import annotations

import filecmp
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dgunet.base.errors import InputError, command, first_few
from dgunet.base.files import replacing
from dgunet.base.options import new_parser
from dgunet.data.sidd import CLEAN_BLOCKS, NOISY_BLOCKS, block_name, read_blocks, sidd_pairs
from dgunet.images.files import list_images, pair_by_name, write_image

RAIN_FOLDERS = {  # in SOURCE, in lower case → in DEST
    **{name.lower(): [name] for name in ("Rain100H", "Test100", "Test1200", "Test2800")},
    "rain100l": ["Rain100L", "val"],
    "rain13k": ["train"],
    "train": ["train"],
}
DND_IMAGES = 50

Plan = list[tuple[Path, Path]]  # (existing file, where it is to appear)
Steps = Iterator[tuple[Path, Path]]  # of a plan


def arrange(
    dataset: str, source: str | Path, dest: str | Path, *, copy: bool = False, gamma: bool = False
) -> dict[Path, int]:
    """Arrange `dataset` (a name in `DATASETS`) from `source` into `dest` and return how many files
    each folder in it now holds, those already there included.

    `copy` copies instead of linking; `gamma` takes GoPro's blur_gamma.

    Raises `InputError`, before anything is written, if `source` has an unknown layout, a file of
    the data set lies outside it, or a file with other content is in the way.
    """
    source, dest = Path(source), Path(dest)
    if not source.is_dir():
        found = "is a file" if source.exists() else "does not exist"
        raise InputError(f"{source}: {found}; expected the folder {dataset} was unpacked to")
    if source.resolve() in (dest.resolve(), *dest.resolve().parents):
        raise InputError(f"{dest}: lies in {source}; expected SOURCE and DEST apart")
    plan_of, layout = DATASETS[dataset]
    plan = list(plan_of(source, dest, **({"gamma": gamma} if dataset == "GoPro" else {})))
    if not plan:
        raise InputError(f"{source}: unknown layout; looked, at any depth, for {layout}")
    if outside := [original for original, _ in plan if not _lies_in(original, source)]:
        raise InputError(f"{len(outside)} files are links out of {source}: {first_few(outside)}")
    to_do = _to_do(plan)
    pictures = _sidd_validation(plan, dest) if dataset == "SIDD" else {}

    for original, place in tqdm(to_do, dataset, disable=None):
        place.parent.mkdir(parents=True, exist_ok=True)
        if copy or not _link(original, place):
            with replacing(place) as unfinished:
                shutil.copy2(original, unfinished)
    for place, block in tqdm(pictures.items(), "val", disable=None):
        if not place.exists():
            write_image(place, block)
    return dict(Counter(place.parent for place in (*(place for _, place in plan), *pictures)))


def _gopro(source: Path, dest: Path, gamma: bool) -> Steps:
    parts = {"train": [dest / "train"], "test": [dest / "GoPro" / "test", dest / "val"]}
    for scene in sorted(sharp.parent for sharp in source.rglob("sharp") if sharp.is_dir()):
        blur = scene / ("blur_gamma" if gamma else "blur")
        if scene.parent.name in parts and blur.is_dir():
            for blurred, sharp in pair_by_name(blur, scene / "sharp"):
                for folder in parts[scene.parent.name]:
                    yield from _pair(blurred, sharp, folder, f"{scene.name}-{blurred.stem}")


def _hide(source: Path, dest: Path) -> Steps:
    truths = {path.name: path for path in _images_below(source, "GT")}
    blurred = _images_below(source, "test") if truths else []
    if missing := [path for path in blurred if path.name not in truths]:
        raise InputError(f"{len(missing)} images of HIDE have no image in GT: {first_few(missing)}")
    for path in blurred:
        yield from _pair(path, truths[path.name], dest / "HIDE/test", path.stem)


def _realblur(source: Path, dest: Path, camera: str) -> Steps:
    for part in ("test", "train"):
        for listing in sorted(source.rglob(f"{camera}_{part}_list.txt")):
            for sharp, blurred in _listed_pairs(listing, source):
                name = f"{blurred.parent.parent.name}-{blurred.stem}"
                yield from _pair(blurred, sharp, dest / camera / part, name)


def _listed_pairs(listing: Path, source: Path) -> Iterator[list[Path]]:
    """Yield the two files of every line, given relative to `source` or to the list's folder."""
    if not _lies_in(listing, source):
        raise InputError(f"{listing}: is a link out of {source}; expected a file in it")
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{listing}: is not UTF-8 ({error}); expected a list of files") from error
    for line in filter(str.strip, lines):
        paths = dict.fromkeys(base / e for e in line.split() for base in (source, listing.parent))
        try:
            found = [path for path in paths if path.is_file() and _lies_in(path, source)]
        except (OSError, ValueError):  # a name too long, or with a null
            found = []
        if len(found) != 2:
            raise InputError(f"{listing}: lists {line[:200]!r}; expected two files in {source}")
        yield found


def _rain13k(source: Path, dest: Path) -> Steps:
    for folder in sorted(part.parent for part in source.rglob("input") if part.is_dir()):
        for name in RAIN_FOLDERS.get(folder.resolve().name.lower(), []):
            if (folder / "target").is_dir():
                for rainy, clean in pair_by_name(folder / "input", folder / "target"):
                    yield from _pair(rainy, clean, dest / name, rainy.stem)


def _sidd(source: Path, dest: Path) -> Steps:
    for noisy, truth, name in sidd_pairs(source):
        yield from _pair(noisy, truth, dest / "SIDD" / "train", name)
    for blocks in (f"{NOISY_BLOCKS}.mat", f"{CLEAN_BLOCKS}.mat"):
        yield from ((path, dest / "SIDD" / "test" / blocks) for path in source.rglob(blocks))


def _sidd_validation(plan: Plan, dest: Path) -> dict[Path, np.ndarray]:
    """Return the blocks of SIDD's validation by the PNG files that they become, such as
    `val/input/0001_01.png` (image, block); none unless both files are there."""
    files = {place.stem: path for path, place in plan if place.suffix == ".mat"}
    parts = {"input": NOISY_BLOCKS, "target": CLEAN_BLOCKS}
    if not files.keys() >= set(parts.values()):
        return {}
    pictures = {}
    for part, name in parts.items():
        blocks = read_blocks(files[name], name)
        for index in np.ndindex(blocks.shape[:2]):
            pictures[dest / "val" / part / f"{block_name(index)}.png"] = blocks[index]
    return pictures


def _dnd(source: Path, dest: Path) -> Steps:
    for info in source.rglob("info.mat"):
        images = [info.parent / "images_srgb" / f"{n:04d}.mat" for n in range(1, DND_IMAGES + 1)]
        if images[0].parent.is_dir():
            if missing := [path for path in images if not path.is_file()]:
                raise InputError(f"{len(missing)} files missing of DND: {first_few(missing)}")
            yield from ((path, dest / "DND/test/images_srgb" / path.name) for path in images)
            yield info, dest / "DND/test/info.mat"


DATASETS: dict[str, tuple[Callable[..., Steps], str]] = {  # name → plan, and what it looks for
    "GoPro": (_gopro, "train/SCENE and test/SCENE with blur (--gamma: blur_gamma) and sharp"),
    "HIDE": (_hide, "a folder test of blurred images and a folder GT"),
    **{
        name: (partial(_realblur, camera=name), f"{name}_test_list.txt with lines 'sharp blurred'")
        for name in ("RealBlur_J", "RealBlur_R")
    },
    "Rain13k": (_rain13k, "input and target in Rain13K or train, Rain100L, Rain100H, Test100 ..."),
    "SIDD": (_sidd, "*NOISY_SRGB*.PNG with *GT_SRGB*.PNG, or Validation*BlocksSrgb.mat"),
    "DND": (_dnd, "info.mat beside images_srgb/0001.mat"),
}


def _pair(degraded: Path, target: Path, folder: Path, name: str) -> Plan:
    return [
        (degraded, folder / "input" / (name + degraded.suffix.lower())),
        (target, folder / "target" / (name + target.suffix.lower())),
    ]


def _images_below(source: Path, name: str) -> list[Path]:
    """Return the images in all folders of a name, at any depth."""
    folders = sorted(folder for folder in source.rglob(name) if folder.is_dir())
    return [path for folder in folders for path in list_images(folder, recursive=True)]


def _lies_in(path: Path, source: Path) -> bool:
    return path.resolve().is_relative_to(source.resolve())


def _to_do(plan: Plan) -> Plan:
    """Return the part of a plan that is not done yet. Raises `InputError` if two files would get
    one name, or a file with other content is in the way."""
    doubled = [place for place, count in Counter(place for _, place in plan).items() if count > 1]
    if doubled:
        raise InputError(f"{len(doubled)} names stand for two files: {first_few(doubled)}")
    present = {place: original for original, place in plan if place.exists()}
    in_the_way = [
        place
        for place, original in present.items()
        if not os.path.samefile(original, place) and not filecmp.cmp(original, place)
    ]
    if in_the_way:
        raise InputError(
            f"{len(in_the_way)} files with other content are in the way, nothing done: "
            f"{first_few(in_the_way)}"
        )
    return [(original, place) for original, place in plan if place not in present]


def _link(original: Path, place: Path) -> bool:
    """Hard-link a file; False where that is not possible."""
    try:
        os.link(original.resolve(), place)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


@command
def main(arguments: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("dataset", choices=list(DATASETS))
    parser.add_argument("source", help="the folder the release was unpacked to")
    parser.add_argument("dest", help="the task's Datasets folder")
    parser.add_argument("--copy", action="store_true", help="copy instead of hard-linking")
    parser.add_argument("--gamma", action="store_true", help="GoPro: blur_gamma instead of blur")
    for folder, count in arrange(**vars(parser.parse_args(arguments))).items():
        print(f"{folder}: {count} files")


if __name__ == "__main__":
    main()
