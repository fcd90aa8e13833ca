"""Degraded photographs: rain, camera shake and noise, as functions and as a command.

    python -m dgunet.data.degradations rain_medium --photos FOLDER --output DIR

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
`python -m dgunet.data.degradations PRESET --photos BSD400 --output DIR`. scikit-image: its nine,
whole; the same without --photos. PSNR is of all three channels of the written files.

What is drawn for an image depends only on the seed, the preset and the pair's name: neither on the
other images nor on the number of jobs. In training, `add_rain`, `add_blur`, `add_noise` or, by
preset, `degrade` do the same to float images on the fly; only files are clipped and rounded.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from dgunet.base.errors import InputError, command, first_few
from dgunet.base.threads import in_parallel
from dgunet.images.files import IMAGE_SUFFIXES, list_images, read_rgb, write_image
from dgunet.images.psnr import psnr

Box = tuple[int, int, int, int]  # top, left, bottom, right


@dataclass(frozen=True)
class Rain:
    """Rain streaks. A range (low, high) is drawn from uniformly: density and tilt once per image,
    the others per group of streaks, of which every one of `layers` distances has two; far streaks
    are at the low end of length and width, near ones at the high end."""

    density: tuple[float, float]  # streaks per 1000 pixels, if all were as frequent as the far ones
    length: tuple[float, float]  # pixels
    width: tuple[float, float]  # pixels, at half the brightness
    brightness: tuple[float, float]  # of the brightest streaks; 1 hides what is behind
    tilt: float  # largest angle against the vertical, degrees
    layers: int = 4


@dataclass(frozen=True)
class Blur:
    """Camera shake: `extent` is the range of the path's extent in pixels, as of `shake_kernel`."""

    extent: tuple[float, float]


@dataclass(frozen=True)
class Noise:
    """Noise of variance `shot`·x + (`sigma`/255)², for pixel values x in [0, 1]: the first part is
    Poisson (photons), the second Gaussian (read-out)."""

    sigma: float
    shot: float = 0.0


PRESETS: dict[str, Rain | Blur | Noise] = {
    "rain_light": Rain((2, 5), (10, 36), (0.9, 2.0), (0.35, 0.8), tilt=20),
    "rain_medium": Rain((4, 8), (10, 40), (0.9, 2.2), (0.35, 0.7), tilt=25),
    "rain_heavy": Rain((6.5, 11), (12, 48), (1.0, 2.4), (0.3, 0.62), tilt=30),
    "blur_mild": Blur((4, 10)),
    "blur_strong": Blur((6, 16)),
    "gaussian15": Noise(15),
    "gaussian25": Noise(25),
    "gaussian50": Noise(50),
    "poisson_gaussian": Noise(sigma=5, shot=0.01),
}

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


def degrade(
    image: np.ndarray, preset: str | Rain | Blur | Noise, rng: np.random.Generator
) -> np.ndarray:
    """Return `image`, float H×W×C in [0, 1], degraded as the preset (a name in `PRESETS`, or the
    parameters themselves) says: by `add_rain`, `add_blur` or `add_noise`.

    Raises `InputError` for an unknown preset, `ValueError` for an image that is not float.
    """
    add = {Rain: add_rain, Blur: add_blur, Noise: add_noise}
    return add[type(_parameters(preset))](image, preset, rng)


def add_rain(image: np.ndarray, preset: str | Rain, rng: np.random.Generator) -> np.ndarray:
    """Return `image`, float H×W×C in [0, 1], behind rain; the result stays in [0, 1].

    Drops, strewn at random, are drawn out to streaks, and each group of equal streaks R in [0, 1]
    is blended over the image as a screen: 1 − (1 − image)(1 − R), which only brightens.
    """
    rain, image = _parameters(preset, Rain), _float_pixels(image)
    height, width = image.shape[:2]
    density = rng.uniform(*rain.density)
    tilt = rng.uniform(-rain.tilt, rain.tilt)

    background = np.ones((height, width), image.dtype)  # what passes through all groups
    for nearness in np.repeat(np.linspace(0, 1, rain.layers), 2):
        streak = streak_kernel(
            length=_between(rain.length, nearness) * rng.uniform(0.75, 1.25),
            width=_between(rain.width, nearness) * rng.uniform(0.8, 1.2),
            angle=tilt + rng.normal(0, 2.5),
        )
        # Drops fall beyond the borders too; their streaks reach into the picture.
        margin = len(streak) // 2
        drops = np.zeros((height + 2 * margin, width + 2 * margin), image.dtype)
        share = 0.25**nearness / (2 * rain.layers)
        count = rng.poisson(density / 1000 * share * drops.size)
        place = rng.integers(0, drops.shape[0], count), rng.integers(0, drops.shape[1], count)
        drops[place] = rng.uniform(*rain.brightness) * rng.uniform(0.3, 1, count)
        streaks = cv2.filter2D(drops, -1, streak, borderType=cv2.BORDER_CONSTANT)
        background *= 1 - np.clip(streaks[margin : margin + height, margin : margin + width], 0, 1)
    screen = (1 - background).reshape(height, width, *[1] * (image.ndim - 2))
    return image + (1 - image) * screen


def add_blur(image: np.ndarray, preset: str | Blur, rng: np.random.Generator) -> np.ndarray:
    """Return `image`, float H×W×C in [0, 1], as a shaken camera takes it; the result is in [0, 1].

    The image, taken for sRGB, is convolved with a random `shake_kernel` in linear light, where
    exposures add up. Beyond its borders it goes on reflected.
    """
    blur, image = _parameters(preset, Blur), _float_pixels(image)
    return blur_in_linear_light(image, shake_kernel(rng.uniform(*blur.extent), rng))


def add_noise(image: np.ndarray, preset: str | Noise, rng: np.random.Generator) -> np.ndarray:
    """Return `image`, float H×W×C in [0, 1], with independent noise of mean 0 on every value,
    neither clipped nor rounded: of variance `shot`·x + (`sigma`/255)², Poisson and Gaussian."""
    noise, image = _parameters(preset, Noise), _float_pixels(image)
    noisy = image
    if noise.shot:
        photons = rng.poisson(np.maximum(image, 0) / noise.shot)
        noisy = (photons * noise.shot).astype(image.dtype)
    return noisy + noise.sigma / 255 * rng.standard_normal(image.shape, image.dtype)


def streak_kernel(length: float, width: float, angle: float) -> np.ndarray:
    """Return the picture of one rain streak, peak 1, on a square of odd side: Gaussian across,
    `width` pixels at half its height; along it, bright in the middle and fading towards both ends,
    `length` pixels apart; `angle` degrees from the vertical."""
    sigma = width / math.sqrt(8 * math.log(2))
    radius = math.ceil(length / 2 + 3 * sigma)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    along, across = x * sine + y * cosine, x * cosine - y * sine
    fade = np.clip(2 - 4 * np.abs(along) / length, 0, 1)
    return fade**2 * (3 - 2 * fade) * np.exp(-0.5 * (across / sigma) ** 2)


def shake_kernel(extent: float, rng: np.random.Generator) -> np.ndarray:
    """Return a random camera-shake kernel: the time a camera spends at each pixel on a smooth path,
    which leaves its middle by up to half of `extent` pixels. The kernel's sides are odd, its sum is
    1, its centre of mass the middle pixel (blurring moves nothing on the whole).

    The path's velocity is a sum of slow oscillations, the slower the stronger, so that it has the
    bends, hooks and halts of recorded shakes; it is drawn bilinearly, finer than the pixel.
    """
    steps, oscillations = 2000, 6
    half_turns = np.pi * np.arange(oscillations)[:, None, None]
    time = ((np.arange(steps) + 0.5) / steps)[:, None]
    phase = rng.uniform(0, 2 * np.pi, (oscillations, 1, 2))
    amplitude = rng.standard_normal((oscillations, 1, 2)) / np.sqrt(
        1 + np.arange(oscillations)[:, None, None]
    )
    velocity = (amplitude * np.cos(half_turns * time + phase)).sum(axis=0)
    path = np.cumsum(velocity, axis=0)
    path -= path.mean(axis=0)
    path *= extent / 2 / np.linalg.norm(path, axis=1).max()

    radius = int(np.abs(path).max()) + 1
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1))
    corner = np.floor(path).astype(int)
    beyond = path - corner
    for down, right in np.ndindex(2, 2):
        weight = np.abs(1 - down - beyond[:, 0]) * np.abs(1 - right - beyond[:, 1])
        np.add.at(kernel, (corner[:, 0] + down + radius, corner[:, 1] + right + radius), weight)
    return kernel / steps


def blur_in_linear_light(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Return the sRGB `image`, float H×W×C in [0, 1], convolved with `kernel` (odd sides, sum 1) in
    linear light, borders reflected, encoded as sRGB again."""
    flipped = np.ascontiguousarray(kernel[::-1, ::-1])  # OpenCV correlates
    linear = cv2.filter2D(srgb_to_linear(image), -1, flipped, borderType=cv2.BORDER_REFLECT_101)
    return linear_to_srgb(np.clip(linear, 0, 1)).reshape(image.shape)


def srgb_to_linear(image: np.ndarray) -> np.ndarray:
    """Return the light, in [0, 1], of sRGB values in [0, 1] (IEC 61966-2-1)."""
    return np.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(light: np.ndarray) -> np.ndarray:
    """Return the sRGB values, in [0, 1], of light in [0, 1] (IEC 61966-2-1)."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def pair_generator(seed: int, preset: str, name: str) -> np.random.Generator:
    """Return the random numbers of one image: other ones for another seed, preset or name."""
    digest = hashlib.sha256(f"{seed}/{preset}/{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def bundled_photos(split: str = "all") -> list[Path]:
    """Return the files of the photographs inside scikit-image: those of `BUNDLED_PHOTOS["train"]`
    or `["test"]`, or "all".

    Raises `InputError` for another split or if the installed scikit-image lacks a photograph.
    """
    import skimage

    if split not in (*BUNDLED_PHOTOS, "all"):
        raise InputError(f"unknown split {split!r}; expected train, test or all")
    folder = Path(skimage.__file__).parent / "data"
    names = [
        name for key, names in BUNDLED_PHOTOS.items() if split in (key, "all") for name in names
    ]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder}: scikit-image comes without {first_few(missing)}; give --photos"
        )
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
    leaves out smaller photographs; `max_side` keeps the middle, no side longer than that. `jobs`
    photographs are worked on at once (-1: one per core), in threads.

    Raises `InputError`, before anything is written, for an unknown preset, photographs of one name
    or unreadable, and an `output` that holds images already (with `overwrite`: images which this
    call would not replace).
    """
    from tqdm import tqdm

    _parameters(preset)
    for option, value in {"patch_size": patch_size, "max_side": max_side}.items():
        if value is not None and value < 1:
            raise InputError(f"{option} is {value}; expected 1 or more")
    if jobs == 0:
        raise InputError("jobs is 0; expected 1 or more, or -1 for one per core")
    boxes = {photo: _boxes(photo, patch_size, max_side) for photo in photos}
    names = [name for of_photo in boxes.values() for name in of_photo]
    if not names:
        size = f" of {patch_size}×{patch_size} pixels" if patch_size else ""
        raise InputError(f"none of {len(photos)} photographs gives a pair{size}")
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise InputError(f"{len(doubled)} names belong to two photographs: {first_few(doubled)}")
    output = Path(output)
    _check_output(output, names, photos, overwrite)
    small = [photo.name for photo, of_photo in boxes.items() if not of_photo]
    if small:
        print(f"left out, smaller than a patch: {first_few(small)}")

    broken = [problem for problem in in_parallel(_problem, photos, jobs) if problem]
    if broken:
        raise InputError(f"{len(broken)} of {len(photos)} are unusable: {first_few(broken)}")

    runs = in_parallel(
        lambda photo: _write_pairs(photo, boxes[photo], preset, output, seed), boxes, jobs
    )
    psnr_of = {}
    # disable=None: no bar where standard error is not a terminal
    with tqdm(total=len(names), desc=preset, unit="pair", disable=None) as progress:
        for psnrs in runs:
            psnr_of.update(psnrs)
            progress.update(len(psnrs))
    return psnr_of


def _problem(photo: Path) -> str:
    """Return in a line why a photograph cannot be read, or nothing."""
    try:
        read_rgb(photo)
    except InputError as error:
        return str(error)
    return ""


def _write_pairs(
    photo: Path, boxes: dict[str, Box], preset: str, output: Path, seed: int
) -> dict[str, float]:
    """Write the pairs of one photograph; return the PSNR of each input."""
    pixels = read_rgb(photo)
    psnr_of = {}
    for name, (top, left, bottom, right) in boxes.items():
        target = pixels[top:bottom, left:right]
        image = target.astype(np.float32) / 255
        degraded = degrade(image, preset, pair_generator(seed, preset, name))
        degraded = np.rint(np.clip(degraded, 0, 1) * 255).astype(np.uint8)
        write_image(output / "target" / f"{name}.png", target)
        write_image(output / "input" / f"{name}.png", degraded)
        psnr_of[name] = psnr(degraded, target, data_range=255)
    return psnr_of


def _boxes(photo: Path, patch_size: int | None, max_side: int | None) -> dict[str, Box]:
    """Return what is used of a photograph: the box of each pair by the pair's name."""
    height, width = _size(photo)
    if patch_size is None:
        used = min(height, max_side or height), min(width, max_side or width)
        return {photo.stem: _middle(height, width, *used)}
    rows, columns = height // patch_size, width // patch_size
    top, left, *_ = _middle(height, width, rows * patch_size, columns * patch_size)
    return {
        f"{photo.stem}_{row:02d}_{column:02d}": (
            top + row * patch_size,
            left + column * patch_size,
            top + (row + 1) * patch_size,
            left + (column + 1) * patch_size,
        )
        for row, column in np.ndindex(rows, columns)
    }


def _middle(height: int, width: int, used_height: int, used_width: int) -> Box:
    top, left = (height - used_height) // 2, (width - used_width) // 2
    return top, left, top + used_height, left + used_width


def _size(photo: Path) -> tuple[int, int]:
    """Return height and width as the file's header has them, which is quicker than decoding."""
    try:
        with Image.open(photo) as picture:
            return picture.height, picture.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return read_rgb(photo).shape[:2]


def _check_output(output: Path, names: list[str], photos: Sequence[Path], overwrite: bool) -> None:
    """Raise `InputError` if writing the pairs would touch what the user had, or mix with it."""
    folders = [output / "input", output / "target"]
    for photo in photos:
        if photo.resolve().parent in [folder.resolve() for folder in folders]:
            raise InputError(f"{photo}: lies where pairs would be written; choose another output")
    existing = [
        path
        for folder in folders
        if folder.is_dir()
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if existing and not overwrite:
        raise InputError(
            f"{output}: holds {len(existing)} images already; expected an empty folder, or "
            "--overwrite"
        )
    kept = sorted(path for path in existing if path.name not in {f"{name}.png" for name in names})
    if kept:
        raise InputError(
            f"{output}: holds {len(kept)} images that this run would not replace: "
            f"{first_few(kept)}; remove them or choose another output"
        )


def _parameters(preset, kind: type | tuple[type, ...] = (Rain, Blur, Noise)):
    """Return the parameters behind a preset's name, or those given, if they are of that kind."""
    parameters = PRESETS.get(preset, preset) if isinstance(preset, str) else preset
    if not isinstance(parameters, kind):
        known = ", ".join(name for name, value in PRESETS.items() if isinstance(value, kind))
        raise InputError(f"unknown preset {preset!r}; expected one of {known}")
    return parameters


def _float_pixels(image: np.ndarray) -> np.ndarray:
    if image.dtype not in (np.float32, np.float64):
        raise ValueError(f"image is {image.dtype}; expected float32 or float64 in [0, 1]")
    return image


def _between(limits: tuple[float, float], fraction: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * fraction


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    description, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m dgunet.data.degradations",
        description=description,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("preset", metavar="PRESET", help="what to do: " + ", ".join(PRESETS))
    parser.add_argument("--photos", type=Path, help="folder (default: scikit-image's photographs)")
    parser.add_argument("--output", type=Path, required=True, help="folder for input/ and target/")
    parser.add_argument(
        "--split", choices=(*BUNDLED_PHOTOS, "all"), help="of scikit-image's photographs (all)"
    )
    parser.add_argument("--images", help="only these photographs: names, comma-separated")
    parser.add_argument("--seed", type=int, default=0)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--patch_size", type=int, help="cut into patches of N×N pixels")
    size.add_argument("--max_side", type=int, help="keep the middle, no side over N pixels")
    parser.add_argument("--jobs", type=int, default=-1, help="photographs at once (-1: all cores)")
    parser.add_argument("--overwrite", action="store_true", help="replace pairs of the same names")
    return parser.parse_args(argv)


def _choose(photos: list[Path], names: str) -> list[Path]:
    """Return the photographs of these names, comma-separated, with or without suffix."""
    chosen = []
    for name in filter(None, (name.strip() for name in names.split(","))):
        found = [photo for photo in photos if name in (photo.name, photo.stem)]
        if not found:
            known = first_few([photo.stem for photo in photos], limit=10)
            raise InputError(f"--images: no photograph {name!r}; there are {known}")
        chosen += found
    if not chosen:
        raise InputError(f"--images {names!r} names no photograph")
    return chosen


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    _parameters(args.preset)
    if args.photos and args.split:
        raise InputError("--split chooses among scikit-image's photographs; leave out --photos")
    photos = list_images(args.photos) if args.photos else bundled_photos(args.split or "all")
    if args.images:
        photos = _choose(photos, args.images)
    psnr_of = synthesize(
        args.preset,
        args.output,
        photos,
        seed=args.seed,
        patch_size=args.patch_size,
        max_side=args.max_side,
        jobs=args.jobs,
        overwrite=args.overwrite,
    )
    mean = sum(psnr_of.values()) / len(psnr_of)
    print(f"{args.output}: {len(psnr_of)} pairs, mean PSNR of the inputs {mean:.2f} dB")


if __name__ == "__main__":
    main()
