"""Make degraded and clean image pairs out of photographs.

    python -m dgunet.tools.synthesize rain_medium --photos FOLDER --output DIR

writes `DIR/input` (degraded) and `DIR/target` (the photographs), 8-bit PNG, one pair per photograph
or per patch of one. Without --photos it takes the colour photographs inside scikit-image.

    preset            mean PSNR of the inputs, dB
                      BSD400  scikit-image
    rain_light         27.89         27.30
    rain_medium        25.43         25.34
    rain_heavy         23.44         23.42
    blur_mild          25.44         28.91
    blur_strong        23.70         25.65
    gaussian15         24.82         24.99
    gaussian25         20.53         20.76
    gaussian50         14.99         15.27
    poisson_gaussian   23.84         24.36

BSD400: its 400 photographs, in colour (321×481), whole:
`python -m dgunet.tools.synthesize PRESET --photos BSD400 --output DIR`. scikit-image: its nine,
whole; the same without --photos. PSNR is of all three channels of the written files.

What is drawn for an image depends only on the seed, the preset and the pair's name: neither on the
other images nor on the number of jobs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dgunet.base.errors import InputError, command, first_few
from dgunet.base.options import new_parser
from dgunet.base.threads import in_parallel
from dgunet.data.degradations import PRESETS, degrade, pair_generator, parameters_of
from dgunet.images.files import IMAGE_SUFFIXES, list_images, read_rgb, to_uint8, write_image
from dgunet.images.psnr import psnr
from dgunet.images.sizes import image_size
from dgunet.tools.check import PARTS, describe

Box = tuple[slice, slice]  # rows, columns

# The right motorcycle picture is the left one seen from 19 cm further on: one scene, one split.
BUNDLED_PHOTOS = {
    "train": (
        "astronaut.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "motorcycle_left.png",
        "motorcycle_right.png",
        "retina.jpg",
    ),
    "test": ("chelsea.png", "coffee.png", "rocket.jpg"),
}


def bundled_photos(split: str = "all") -> list[Path]:
    """Return the files of the photographs inside scikit-image: those of `BUNDLED_PHOTOS["train"]`
    or `["test"]`, or "all".

    Raises `InputError` for another split or if the installed scikit-image lacks a photograph.
    """
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    names = [n for key, names in BUNDLED_PHOTOS.items() if split in (key, "all") for n in names]
    if not names:
        raise InputError(f"unknown split {split!r}; expected train, test or all")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise InputError(f"{folder}: scikit-image lacks {first_few(missing)}; give --photos")
    return [folder / name for name in names]


def synthesize(
    preset: str,
    output: str | Path,
    photos: Sequence[Path],
    seed: int = 0,
    patch_size: int | None = None,
    max_side: int | None = None,
    jobs: int = -1,
    overwrite: bool = False,
) -> dict[str, float]:
    """Write a pair `output/input/NAME.png`, `output/target/NAME.png` per photograph, or per patch,
    and return the PSNR of each input in dB by NAME.

    `patch_size` cuts a photograph into as many patches of that side as fit, from the middle, and
    leaves out smaller photographs; `max_side` keeps the middle, no side longer than that. `jobs` is
    for `thread_count`.

    Raises `InputError`, before anything is written, for an unknown preset, photographs of one name
    or unreadable, and an `output` that holds images already (with `overwrite`: images which this
    call would not replace).
    """
    parameters_of(preset)
    for option, value in {"patch_size": patch_size, "max_side": max_side}.items():
        if value is not None and value < 1:
            raise InputError(f"{option} is {value}; expected 1 or more")
    boxes = {photo: _boxes(photo, patch_size, max_side) for photo in photos}
    names = [name for of_photo in boxes.values() for name in of_photo]
    if not names:
        size = f" of {patch_size}×{patch_size} pixels" if patch_size else ""
        raise InputError(f"none of {len(photos)} photographs gives a pair{size}")
    if doubled := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{len(doubled)} names belong to two photographs: {first_few(doubled)}")
    output = Path(output)
    make_room(output, {f"{name}.png" for name in names}, overwrite)
    for photo in photos:
        if photo.resolve().parent in [(output / part).resolve() for part in PARTS]:
            raise InputError(f"{photo}: lies where pairs would be written; choose another output")
    if small := [photo.name for photo, of_photo in boxes.items() if not of_photo]:
        print(f"left out, smaller than a patch: {first_few(small)}")

    if broken := [problem for _, problem in in_parallel(describe, photos, jobs) if problem]:
        raise InputError(f"{len(broken)} of {len(photos)} are unusable: {first_few(broken)}")

    runs = in_parallel(
        lambda photo: _write_pairs(photo, boxes[photo], preset, output, seed), boxes, jobs
    )
    psnr_of = {}
    for psnrs in tqdm(runs, preset, len(boxes), unit="photograph", disable=None):
        psnr_of.update(psnrs)
    return psnr_of


def _write_pairs(
    photo: Path, boxes: dict[str, Box], preset: str, output: Path, seed: int
) -> dict[str, float]:
    """Write the pairs of one photograph; return the PSNR of each input."""
    pixels = read_rgb(photo)
    psnr_of = {}
    for name, box in boxes.items():
        target = pixels[box]
        image = target.astype(np.float32) / 255
        degraded = to_uint8(degrade(image, preset, pair_generator(seed, preset, name)))
        write_image(output / "target" / f"{name}.png", target)
        write_image(output / "input" / f"{name}.png", degraded)
        psnr_of[name] = psnr(degraded, target, data_range=255)
    return psnr_of


def _boxes(photo: Path, patch_size: int | None, max_side: int | None) -> dict[str, Box]:
    """Return what is used of a photograph, around its middle: the box of each pair by its name."""
    size = np.array(image_size(photo))
    if patch_size:
        sides, counts = np.full(2, patch_size), size // patch_size
    else:
        sides, counts = np.minimum(size, max_side or size), np.ones(2, int)
    corner = (size - counts * sides) // 2
    boxes = {}
    for row, column in np.ndindex(*counts):
        top, left = corner + sides * (row, column)
        name = f"{photo.stem}_{row:02d}_{column:02d}" if patch_size else photo.stem
        boxes[name] = slice(top, top + sides[0]), slice(left, left + sides[1])
    return boxes


def make_room(output: Path, names: Set[str], overwrite: bool) -> None:
    """Raise `InputError` if there are images where pairs of these names are to be written, or, with
    `overwrite`, other images, which would lie among the pairs."""
    found = [path for part in PARTS for path in sorted((output / part).glob("*"))]
    existing = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
    if existing and not overwrite:
        raise InputError(
            f"{output}: holds {len(existing)} images already; expected an empty folder, or "
            "--overwrite"
        )
    if kept := [path for path in existing if path.name not in names]:
        raise InputError(
            f"{output}: holds {len(kept)} images that this run would not replace: "
            f"{first_few(kept)}; remove them or choose another output"
        )


def _choose(photos: list[Path], names: str) -> list[Path]:
    """Return the photographs of these names, comma-separated, with or without suffix."""
    by_name = {name: photo for photo in photos for name in (photo.name, photo.stem)}
    wanted = [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in by_name]:
        known = first_few([photo.stem for photo in photos], limit=10)
        raise InputError(f"--images: no photograph {unknown[0]!r}; there are {known}")
    return [by_name[name] for name in wanted]


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("preset", metavar="PRESET", help="what to do: " + ", ".join(PRESETS))
    add("--photos", type=Path, help="folder (default: scikit-image's photographs)")
    add("--output", type=Path, required=True, help="folder for input/ and target/")
    add("--images", help="only these photographs: names, comma-separated")
    add("--seed", type=int, default=0)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--patch_size", type=int, help="cut into patches of N×N pixels")
    size.add_argument("--max_side", type=int, help="keep the middle, no side over N pixels")
    add("--jobs", type=int, default=-1, help="photographs at once (-1: all cores)")
    add("--overwrite", action="store_true", help="replace pairs of the same names")
    options = vars(parser.parse_args(argv))
    folder, names = options.pop("photos"), options.pop("images")
    photos = list_images(folder) if folder else bundled_photos()
    if names:
        photos = _choose(photos, names)
    psnr_of = synthesize(photos=photos, **options)
    mean = sum(psnr_of.values()) / len(psnr_of)
    print(f"{options['output']}: {len(psnr_of)} pairs, mean PSNR of the inputs {mean:.2f} dB")


if __name__ == "__main__":
    main()
