"""Arrange a downloaded dataset into the folders that train.py and test.py read.

    python -m dgunet.tools.arrange GoPro GOPRO_Large Deblurring/Datasets

The program looks in SOURCE, at any depth, for (in brackets: what it makes of it in DEST):

    GoPro       train/SCENE/ and test/SCENE/ with blur (--gamma: blur_gamma) and sharp
                (train, GoPro/test)
    HIDE        a folder test, with sub-folders or without, and a folder GT (HIDE/test)
    RealBlur_J  RealBlur_J_test_list.txt, RealBlur_J_train_list.txt and the files they list
    RealBlur_R  (RealBlur_J/test, RealBlur_J/train); the same for RealBlur_R
    Rain13k     folders with input and target, called Rain13K or train, Rain100L, Rain100H, Test100,
                Test1200, Test2800 (train, Rain100L ...)
    SIDD        pairs ...NOISY_SRGB_010.PNG and ...GT_SRGB_010.PNG (SIDD/train);
                ValidationNoisyBlocksSrgb.mat, ValidationGtBlocksSrgb.mat
                (SIDD/test, and as PNG val)
    DND         info.mat with images_srgb/0001.mat ... 0050.mat (DND/test)

The two images of a pair get one name, in input/ and in target/; it includes the names of their
folders where file names alone are not unique. Files are hard links to those in SOURCE (they take no
space, but a change to one changes the other), or copies with --copy and where the disk has no
links. Nothing is ever overwritten, and an interrupted run continues when it is started again.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dgunet.base.errors import InputError, command, first_few
from dgunet.base.files import replacing
from dgunet.images.files import list_images, pair_by_name, write_image

RAIN_TEST_SETS = ("Rain100L", "Rain100H", "Test100", "Test1200", "Test2800")
RAIN_TRAINING_SETS = ("Rain13K", "train")
DND_IMAGES = 50

Plan = list[tuple[Path, Path]]  # (existing file, where it is to appear)


def arrange(
    dataset: str,
    source: str | Path,
    dest: str | Path,
    *,
    copy: bool = False,
    gamma: bool = False,
    progress: bool = False,
) -> dict[Path, int]:
    """Arrange `dataset` (a name in `DATASETS`) from `source` into `dest` and return how many files
    each folder in it now holds, those already there included.

    `copy` copies instead of linking; `gamma` takes GoPro's blur_gamma.

    Raises `InputError`, before anything is written, if `source` has an unknown layout or if a file
    with other content is in the way.
    """
    from tqdm import tqdm

    source, dest = Path(source), Path(dest)
    if dataset not in DATASETS:
        raise InputError(f"unknown dataset {dataset}; expected one of {', '.join(DATASETS)}")
    if not source.is_dir():
        found = "is a file" if source.exists() else "does not exist"
        raise InputError(f"{source}: {found}; expected the folder {dataset} was unpacked to")
    if source.resolve() in (dest.resolve(), *dest.resolve().parents):
        raise InputError(f"{dest}: lies in {source}; expected SOURCE and DEST apart")
    options = {"gamma": gamma} if dataset == "GoPro" else {}
    plan = DATASETS[dataset](source, dest, **options)
    for original, place in tqdm(_to_do(plan), dataset, disable=not progress):
        place.parent.mkdir(parents=True, exist_ok=True)
        if copy or not _link(original, place):
            with replacing(place) as partial:
                shutil.copy2(original, partial)
    counts = Counter(place.parent for _, place in plan)
    if dataset == "SIDD":
        counts.update(_unpack_sidd_validation(dest, progress))
    return dict(counts)


def sidd_pairs(folder: str | Path) -> list[tuple[Path, Path, str]]:
    """Return noisy image, ground truth and a name unique in `folder` for each of SIDD's pairs in or
    below it: `SCENE/0001_NOISY_SRGB_010.PNG`, `SCENE/0001_GT_SRGB_010.PNG`, "SCENE-0001_010".

    Raises `InputError` if there are none, or one lacks its ground truth.
    """
    noisy = [path for path in list_images(folder, recursive=True) if "NOISY" in path.name]
    pairs = [
        (
            path,
            path.with_name(path.name.replace("NOISY", "GT")),
            f"{path.parent.name}-{path.stem.replace('NOISY_SRGB_', '')}",
        )
        for path in noisy
    ]
    if not pairs:
        raise InputError(f"{folder}: found no *NOISY*.PNG; expected SIDD's NOISY and GT images")
    _require_files([truth for _, truth, _ in pairs], "ground truth")
    return pairs


def _gopro(source: Path, dest: Path, gamma: bool) -> Plan:
    blur = "blur_gamma" if gamma else "blur"
    plan: Plan = []
    for scene in sorted(sharp.parent for sharp in source.rglob("sharp") if sharp.is_dir()):
        parts = {"train": dest / "train", "test": dest / "GoPro" / "test"}
        part = parts.get(scene.parent.name)
        if part and (scene / blur).is_dir():
            for blurred, sharp in pair_by_name(scene / blur, scene / "sharp"):
                plan += _pair(blurred, sharp, part, f"{scene.name}-{blurred.stem}")
    return _found(plan, source, f"train/SCENE/{blur} and sharp, test/SCENE/{blur} and sharp")


def _hide(source: Path, dest: Path) -> Plan:
    truths = {path.name: path for path in _images_below(source, "GT")}
    blurred = _images_below(source, "test") if truths else []
    missing = [path for path in blurred if path.name not in truths]
    if missing:
        raise InputError(f"{len(missing)} images of HIDE have no image in GT: {first_few(missing)}")
    plan: Plan = []
    for path in blurred:
        plan += _pair(path, truths[path.name], dest / "HIDE" / "test", path.stem)
    return _found(plan, source, "a folder test of blurred images and a folder GT")


def _realblur(camera: str) -> Callable[[Path, Path], Plan]:
    def plan_of(source: Path, dest: Path) -> Plan:
        plan: Plan = []
        for part in ("test", "train"):
            for listing in sorted(source.rglob(f"{camera}_{part}_list.txt")):
                for sharp, blurred in _listed_pairs(listing, source):
                    name = f"{blurred.parent.parent.name}-{blurred.stem}"
                    plan += _pair(blurred, sharp, dest / camera / part, name)
        return _found(plan, source, f"{camera}_test_list.txt with lines 'sharp blurred'")

    return plan_of


def _listed_pairs(listing: Path, source: Path) -> Iterator[list[Path]]:
    """Yield the two files of every line, given relative to `source` or to the list's folder."""
    bases = (source, listing.parent)
    for line in listing.read_text(encoding="utf-8").splitlines():
        entries = line.split()
        found = [base / entry for entry in entries for base in bases if (base / entry).is_file()]
        found = list(dict.fromkeys(found))
        if entries and len(found) != 2:
            raise InputError(f"{listing}: lists '{line}'; expected two files below {source}")
        if entries:
            yield found


def _rain13k(source: Path, dest: Path) -> Plan:
    places = {name.lower(): dest / name for name in RAIN_TEST_SETS}
    places |= {name.lower(): dest / "train" for name in RAIN_TRAINING_SETS}
    plan: Plan = []
    for folder in sorted(part.parent for part in source.rglob("input") if part.is_dir()):
        place = places.get(folder.resolve().name.lower())
        if place and (folder / "target").is_dir():
            for rainy, clean in pair_by_name(folder / "input", folder / "target"):
                plan += _pair(rainy, clean, place, rainy.stem)
    sets = ", ".join((*RAIN_TRAINING_SETS, *RAIN_TEST_SETS))
    return _found(plan, source, f"folders input and target in one of {sets}")


def _sidd(source: Path, dest: Path) -> Plan:
    plan: Plan = []
    if any("NOISY" in path.name for path in _images(source)):
        for noisy, truth, name in sidd_pairs(source):
            plan += _pair(noisy, truth, dest / "SIDD" / "train", name)
    for blocks in ("ValidationNoisyBlocksSrgb.mat", "ValidationGtBlocksSrgb.mat"):
        plan += [(path, dest / "SIDD" / "test" / blocks) for path in source.rglob(blocks)]
    return _found(plan, source, "*NOISY_SRGB*.PNG with *GT_SRGB*.PNG, or Validation*BlocksSrgb.mat")


def _dnd(source: Path, dest: Path) -> Plan:
    plan: Plan = []
    for info in source.rglob("info.mat"):
        images = [info.parent / "images_srgb" / f"{n:04d}.mat" for n in range(1, DND_IMAGES + 1)]
        if images[0].parent.is_dir():
            _require_files(images, "image of DND")
            plan += [(path, dest / "DND/test/images_srgb" / path.name) for path in images]
            plan.append((info, dest / "DND/test/info.mat"))
    return _found(plan, source, "info.mat beside images_srgb/0001.mat")


DATASETS: dict[str, Callable[..., Plan]] = {
    "GoPro": _gopro,
    "HIDE": _hide,
    "RealBlur_J": _realblur("RealBlur_J"),
    "RealBlur_R": _realblur("RealBlur_R"),
    "Rain13k": _rain13k,
    "SIDD": _sidd,
    "DND": _dnd,
}


def _pair(degraded: Path, target: Path, folder: Path, name: str) -> Plan:
    return [
        (degraded, folder / "input" / (name + degraded.suffix.lower())),
        (target, folder / "target" / (name + target.suffix.lower())),
    ]


def _images_below(source: Path, name: str) -> list[Path]:
    """Return the images in all folders of a name, at any depth."""
    folders = sorted(folder for folder in source.rglob(name) if folder.is_dir())
    return [path for folder in folders for path in _images(folder)]


def _images(folder: Path) -> list[Path]:
    try:
        return list_images(folder, recursive=True)
    except InputError:
        return []


def _require_files(paths: list[Path], what: str) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(f"{len(missing)} files missing, each {what}: {first_few(missing)}")


def _found(plan: Plan, source: Path, looked_for: str) -> Plan:
    if not plan:
        raise InputError(f"{source}: unknown layout; looked, at any depth, for {looked_for}")
    return plan


def _to_do(plan: Plan) -> Plan:
    """Return the part of a plan that is not done yet. Raises `InputError` if two files would get
    one name, or a file with other content is in the way."""
    doubled = [place for place, count in Counter(place for _, place in plan).items() if count > 1]
    if doubled:
        raise InputError(f"{len(doubled)} names stand for two files: {first_few(doubled)}")
    present = [(original, place) for original, place in plan if place.exists()]
    in_the_way = [place for original, place in present if not _same(original, place)]
    if in_the_way:
        raise InputError(
            f"{len(in_the_way)} files with other content are in the way, nothing done: "
            f"{first_few(in_the_way)}"
        )
    done = {place for _, place in present}
    return [(original, place) for original, place in plan if place not in done]


def _same(first: Path, second: Path) -> bool:
    return os.path.samefile(first, second) or filecmp.cmp(first, second)


def _link(original: Path, place: Path) -> bool:
    """Hard-link a file; False where that is not possible."""
    try:
        os.link(original.resolve(), place)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def _unpack_sidd_validation(dest: Path, progress: bool) -> dict[Path, int]:
    """Write SIDD's validation blocks as PNG pairs `val/input/0001_01.png` (image, block), if both
    files are there, and return how many each folder then has."""
    from tqdm import tqdm

    parts = {"input": "ValidationNoisyBlocksSrgb", "target": "ValidationGtBlocksSrgb"}
    files = {part: dest / "SIDD" / "test" / f"{name}.mat" for part, name in parts.items()}
    if not all(file.is_file() for file in files.values()):
        return {}
    counts = {}
    for part, file in files.items():
        folder = dest / "val" / part
        for name, block in tqdm(_blocks(file), f"val/{part}", disable=not progress):
            if not (folder / name).exists():
                write_image(folder / name, block)
            counts[folder] = counts.get(folder, 0) + 1
    return counts


def _blocks(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    from scipy.io import loadmat

    try:
        blocks = loadmat(file)[file.stem]
    except (KeyError, ValueError, NotImplementedError, OSError) as error:
        raise InputError(f"{file}: holds no {file.stem} as MAT v5 ({error})") from error
    if blocks.ndim != 5 or blocks.shape[-1] != 3 or blocks.dtype != "uint8":
        raise InputError(
            f"{file}: {file.stem} is {blocks.dtype} {blocks.shape}; expected uint8 "
            "(images, blocks, height, width, 3)"
        )
    for image, of_image in enumerate(blocks, 1):
        for number, block in enumerate(of_image, 1):
            yield f"{image:04d}_{number:02d}.png", block


@command
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog=__doc__.partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", choices=list(DATASETS))
    parser.add_argument("source", help="the folder the release was unpacked to")
    parser.add_argument("dest", help="the task's Datasets folder")
    parser.add_argument("--copy", action="store_true", help="copy instead of hard-linking")
    parser.add_argument("--gamma", action="store_true", help="GoPro: blur_gamma instead of blur")
    args = parser.parse_args(arguments)
    counts = arrange(
        args.dataset, args.source, args.dest, copy=args.copy, gamma=args.gamma, progress=True
    )
    for folder, count in counts.items():
        print(f"{folder}: {count} files")


if __name__ == "__main__":
    main()
