"""Degradations: rain, camera shake and noise, as functions of a photograph and a random generator.

Training applies them to crops on the fly (`DATA.DEGRADATION`, see `degradation`), and
`python -m dgunet.tools.synthesize` makes files of them. Images are float H×W×C in [0, 1].
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from dgunet.base.errors import InputError
from dgunet.images.noise import noise_range

# (image H×W×C, float in [0, 1], generator) -> degraded image, float, neither clipped nor rounded
Degradation = Callable[[np.ndarray, np.random.Generator], np.ndarray]


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

NAMES = (
    "gaussian25 (any σ), gaussian0-50 (any range), clean, one of "
    f"{', '.join(PRESETS)}, or several joined by +"
)


def degradation(name: str) -> Degradation | None:
    """Return the degradation that `DATA.DEGRADATION` names; None for the empty name.

    `gaussian25` adds Gaussian noise of σ = 25 (of 255), neither clipped nor rounded (the protocol
    of DnCNN and Restormer); `gaussian0-50` draws σ uniformly for each sample; `clean` changes
    nothing; any other name is a preset. Of several names joined by +, such as `rain_light+clean`,
    each sample draws one.

    Raises `InputError` for an unknown name.

    >>> degradation("gaussian0-50")(np.zeros((2, 2, 1)), np.random.default_rng(0)).shape
    (2, 2, 1)
    """
    if not name:
        return None
    names = name.split("+")
    for part in names:
        low, high = noise_range(part) or (1, 0)
        if low > high and part not in ("clean", *PRESETS):
            raise InputError(f"DATA.DEGRADATION: {part or name}; expected {NAMES}")
    return partial(_degrade_by_one, names=names)


def is_degradation(name: str) -> bool:
    """Tell whether `degradation` knows the name."""
    try:
        degradation(name)
    except InputError:
        return False
    return True


def describe(name: str) -> str:
    """Return in words what `degradation` makes of that name; an unknown name as it is.

    >>> describe("gaussian0-50")
    'Gaussian noise, σ = 0 to 50 of 255'
    >>> describe("rain_light+rain_heavy+clean")
    'rain streaks, light, or rain streaks, heavy, or nothing'
    """
    if "+" in name:
        return ", or ".join(dict.fromkeys(map(describe, name.split("+"))))
    if name == "clean":
        return "nothing"
    if noise := noise_range(name):
        levels = " to ".join(f"{level:g}" for level in dict.fromkeys(noise))
        return f"Gaussian noise, σ = {levels} of 255"
    match PRESETS.get(name):
        case Noise(sigma):
            return f"Gaussian noise, σ = {sigma:g} of 255 and photon noise"
        case Blur((low, high)):
            return f"camera shake of {low:g} to {high:g} pixels"
        case Rain():
            return f"rain streaks, {name.removeprefix('rain_')}"
    return name


def degrade(
    image: np.ndarray, preset: str | Rain | Blur | Noise, rng: np.random.Generator
) -> np.ndarray:
    """Return `image`, float H×W×C in [0, 1], degraded as the preset (a name in `PRESETS`, or the
    parameters themselves) says: by `add_rain`, `add_blur` or `add_noise`.

    Raises `InputError` for an unknown preset, `ValueError` for an image that is not float.
    """
    if image.dtype not in (np.float32, np.float64):
        raise ValueError(f"image is {image.dtype}; expected float32 or float64 in [0, 1]")
    parameters = parameters_of(preset)
    add: dict[type, Callable] = {Rain: add_rain, Blur: add_blur, Noise: add_noise}
    return add[type(parameters)](image, parameters, rng)


def add_rain(image: np.ndarray, rain: Rain, rng: np.random.Generator) -> np.ndarray:
    """Return `image`, float H×W×C in [0, 1], behind rain; the result stays in [0, 1].

    Drops, strewn at random, are drawn out to streaks, and each group of equal streaks R in [0, 1]
    is blended over the image as a screen: 1 − (1 − image)(1 − R), which only brightens.
    """
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


def add_blur(image: np.ndarray, blur: Blur, rng: np.random.Generator) -> np.ndarray:
    """Return `image`, float H×W×C in [0, 1], as a shaken camera takes it: blurred by a random
    `shake_kernel` in linear light, where exposures add up. The result is in [0, 1]."""
    return blur_in_linear_light(image, shake_kernel(rng.uniform(*blur.extent), rng))


def add_noise(image: np.ndarray, noise: Noise, rng: np.random.Generator) -> np.ndarray:
    """Return `image`, float H×W×C in [0, 1], with independent noise of mean 0 on every value,
    neither clipped nor rounded."""
    noisy = image
    if noise.shot:
        photons = rng.poisson(np.maximum(image, 0) / noise.shot)
        noisy = np.multiply(photons, noise.shot).astype(image.dtype)
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
    1, its centre of mass the middle pixel (blurring shifts nothing as a whole).

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
    """Return the random generator of one image, which depends on seed, preset and name alone."""
    digest = hashlib.sha256(f"{seed}/{preset}/{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def parameters_of(preset: str | Rain | Blur | Noise) -> Rain | Blur | Noise:
    """Return the parameters behind a preset's name, or those given."""
    if not isinstance(preset, str):
        return preset
    if preset not in PRESETS:
        raise InputError(f"unknown preset {preset!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[preset]


def _between(limits: tuple[float, float], fraction: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * fraction


def _degrade_by_one(image: np.ndarray, rng: np.random.Generator, names: list[str]) -> np.ndarray:
    name = names[rng.integers(len(names))] if len(names) > 1 else names[0]
    if name == "clean":
        return image
    if noise := noise_range(name):
        low, high = noise
        return add_noise(image, Noise(low if low == high else rng.uniform(low, high)), rng)
    return degrade(image, name, rng)
