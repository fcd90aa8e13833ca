"""PSNR and SSIM by the protocols of the published tables.

"PSNR" alone says little: by colour space, rounding and window the same picture scores decibels
apart. So every score is made by a named protocol, whose description stands beside it.

A protocol takes a restored and a target image of one size, H×W×3 (RGB) or H×W (grey), each uint8,
uint16 or float in [0, 1], and returns PSNR in dB and SSIM. Each function says what it rounds.
Identical images have a PSNR of inf, and so has a mean with such an image in it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import cv2
import numpy as np

from dgunet.base.errors import InputError
from dgunet.images.files import to_uint8
from dgunet.images.psnr import decibels, psnr

_GAUSSIAN = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
_GAUSSIAN /= _GAUSSIAN.sum()
_UNIFORM = np.full(7, 1 / 7)
_STRIP_ROWS = 64  # few enough for a strip's float64 copies to stay in the processor's cache


@dataclass(frozen=True)
class Score:
    """PSNR (dB) and SSIM of one image, or of a mean."""

    name: str
    psnr: float
    ssim: float


class TooSmall(InputError):
    """An image is smaller than the window of SSIM."""


def deraining_y(restored: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """PSNR and SSIM on Y of limited-range YCbCr (BT.601), rounded to 8 bits; SSIM with an 11×11
    Gaussian (σ 1.5), valid region only.

    As the published MATLAB script of the deraining sets. Both images are rounded to 8 bits before Y
    (16 … 235) is taken, and Y is rounded too; a grey image is taken as it is. PSNR with peak 255;
    SSIM as in Wang et al., "Image Quality Assessment", 2004.
    """
    _check(restored, target, _GAUSSIAN)
    restored, target = (limited_range_luma(to_uint8(image)) for image in (restored, target))
    similarity = _ssim_map(restored, target, _GAUSSIAN, 255)
    return psnr(restored, target, 255), float(similarity.mean())


def matlab_rgb(restored: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """PSNR and SSIM on RGB as MATLAB's psnr and ssim; SSIM with an 11×11×11 Gaussian (σ 1.5) over
    height, width and channels.

    Nothing is rounded. MATLAB's `ssim` takes an RGB image for a volume, with its borders
    replicated. A grey image has a flat window.
    """
    _check(restored, target, _GAUSSIAN)
    peak = 255.0
    if restored.dtype != np.uint8 or target.dtype != np.uint8:
        restored, target, peak = _to_unit(restored), _to_unit(target), 1.0
    decibels = psnr(restored, target, peak)
    border = len(_GAUSSIAN) // 2
    padding = [(border, border), (border, border), (0, 0)][: restored.ndim]
    restored, target = (np.pad(image, padding, mode="edge") for image in (restored, target))
    similarity = _ssim_map(restored, target, _GAUSSIAN, peak, across_channels=True)
    return decibels, float(similarity.mean())


def compressive_sensing_y(restored: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """PSNR and SSIM on Y of full-range YCrCb, result clipped but not rounded; SSIM with a 7×7
    uniform window, sample covariance, 3 border pixels dropped.

    As the published compressive-sensing script. Y is OpenCV's (8 bits for 8-bit pixels); that of a
    colour target is compared with a result that is Y alone. PSNR with peak 255; SSIM is
    scikit-image's default.
    """
    if restored.ndim == 2 and target.ndim == 3 and target.dtype.kind != "f":
        target = _full_range_luma(target)
    _check(restored, target, _UNIFORM)
    restored, target = _full_range_luma(restored), _full_range_luma(target)
    similarity = _ssim_map(restored, target, _UNIFORM, 255, covariance_scale=49 / 48)
    return psnr(restored, target, 255), float(similarity.mean())


def gaussian_rgb(restored: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """PSNR on RGB, rounded to 8 bits; SSIM the mean of the channels', 11×11 Gaussian (σ 1.5),
    population covariance, 5 border pixels dropped.

    As papers on Gaussian denoising (DnCNN, Restormer) do on CBSD68.
    """
    _check(restored, target, _GAUSSIAN)
    restored, target = to_uint8(restored), to_uint8(target)
    similarity = _ssim_map(restored, target, _GAUSSIAN, 255)
    return psnr(restored, target, 255), float(similarity.mean())


def realblur(restored: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """PSNR and SSIM on RGB over the valid region after intensity scaling and ECC alignment
    (homography); SSIM by channel with an 11×11 Gaussian (σ 1.5).

    As the published RealBlur script. Both images are rounded to 8 bits. The result is scaled by
    least squares to the target's intensity, and warped by the homography that ECC finds (100
    iterations, Gaussian filter 5): bicubic with reflection, its mask nearest. SSIM has the window
    of `gaussian_rgb`. Raises `InputError` where ECC finds no alignment (a constant or an unlike
    result): a score without it would be of another protocol.
    """
    _check(restored, target, _GAUSSIAN)
    restored = to_uint8(restored).astype(np.float32) / 255
    target = to_uint8(target).astype(np.float32) / 255
    energy = np.sum(restored * restored, dtype=np.float64)
    if energy == 0:
        raise InputError("restored image is black; expected one that can be aligned to its target")
    restored = restored * np.float32(np.sum(restored * target, dtype=np.float64) / energy)

    grey_restored, grey_target = (
        cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image
        for image in (restored, target)
    )
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 0.0)
    start = np.eye(3, dtype=np.float32)
    try:  # by position: the names and defaults differ between versions of OpenCV
        _, warp = cv2.findTransformECC(
            grey_target, grey_restored, start, cv2.MOTION_HOMOGRAPHY, stop, None, 5
        )
    except cv2.error as error:
        text = f"restored image cannot be aligned to its target (ECC: {error.err})"
        raise InputError(text) from error

    size = target.shape[1::-1]
    inverse = cv2.WARP_INVERSE_MAP
    restored = cv2.warpPerspective(
        restored, warp, size, flags=cv2.INTER_CUBIC | inverse, borderMode=cv2.BORDER_REFLECT
    )
    covered = np.ones(size[::-1], np.float32)
    covered = cv2.warpPerspective(covered, warp, size, flags=cv2.INTER_NEAREST | inverse)
    covered = covered if target.ndim == 2 else np.repeat(covered[..., None], 3, axis=2)
    border = len(_GAUSSIAN) // 2
    inner = covered[border:-border, border:-border]
    if not inner.any():
        raise InputError("restored image, once aligned, lies outside its target")

    restored, target = restored * covered, target * covered
    squared_error = np.sum(np.subtract(restored, target, dtype=np.float64) ** 2)
    similarity = _ssim_map(restored, target, _GAUSSIAN, 1.0)
    return (
        decibels(float(squared_error / covered.sum(dtype=np.float64)), 1.0),
        float(np.sum(similarity * inner) / inner.sum(dtype=np.float64)),
    )


PROTOCOLS = {
    function.__name__: function
    for function in (deraining_y, matlab_rgb, compressive_sensing_y, gaussian_rgb, realblur)
}


def describe(protocol: str) -> str:
    """Return what a protocol measures: the first paragraph of its docstring."""
    first, _, _ = (inspect.getdoc(PROTOCOLS[protocol]) or "").partition("\n\n")
    return " ".join(first.split()).removesuffix(".")


def score_image(
    name: str, protocol: str, restored: np.ndarray, target: np.ndarray
) -> Score | InputError:
    """Return the score of an image called `name`, or an error that says why it has none."""
    try:
        return Score(name, *PROTOCOLS[protocol](restored, target))
    except InputError as error:
        return type(error)(f"{name}: {error}")


def mean_score(scores: Sequence[Score], name: str = "mean") -> Score:
    """Return the mean PSNR and the mean SSIM; a PSNR of inf among them makes the mean inf.

    >>> mean_score([Score("a", 30.0, 0.5), Score("b", 32.0, 1.0)])
    Score(name='mean', psnr=31.0, ssim=0.75)
    """
    return Score(name, fmean(s.psnr for s in scores), fmean(s.ssim for s in scores))


def _size(image: np.ndarray) -> str:
    return "×".join(str(side) for side in image.shape)


def _check(restored: np.ndarray, target: np.ndarray, window: np.ndarray) -> None:
    """Raise `InputError` for a pair that no protocol can score."""
    for image, name in ((restored, "restored"), (target, "target")):
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
            raise InputError(f"{name} image is {_size(image)}; expected H×W×3 or H×W")
        if image.dtype.kind == "f":
            low, high = float(image.min(initial=0)), float(image.max(initial=0))
            # Room for a network's overshoot, but not for pixels in 0 … 255; NaN fails as well.
            if not (low >= -1 and high <= 2):
                raise InputError(f"{name} image has values {low:g} … {high:g}; expected 0 … 1")
        elif image.dtype not in (np.uint8, np.uint16):
            raise InputError(f"{name} image is {image.dtype}; expected uint8, uint16 or float")
    if restored.shape != target.shape:
        raise InputError(
            f"restored image is {_size(restored)}, target {_size(target)}; expected the same size"
        )
    if min(target.shape[:2]) < len(window):
        raise TooSmall(
            f"image is {_size(target)}; expected at least {len(window)}×{len(window)}, the window "
            "of SSIM"
        )


def _to_unit(image: np.ndarray) -> np.ndarray:
    """Return the image as float64 in [0, 1]; a float one is not clipped."""
    peak = 1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max
    return image.astype(np.float64) / peak


def limited_range_luma(image: np.ndarray) -> np.ndarray:
    """Return Y of uint8 RGB as uint8: round(16 + (65.481 R + 128.553 G + 24.966 B) / 255), in
    integers so that a half goes up whatever the machine. Grey stays."""
    if image.ndim == 2:
        return image
    weighted = image.astype(np.int32) @ np.array([65481, 128553, 24966], np.int32)
    return (16 + (weighted + 127500) // 255000).astype(np.uint8)


def _full_range_luma(image: np.ndarray) -> np.ndarray:
    """Return Y of OpenCV's YCrCb in 0 … 255: uint8 of 8- and 16-bit pixels, float64, not rounded,
    of float ones. Grey stays."""
    if image.dtype.kind == "f":
        image = np.clip(image, 0, 1).astype(np.float64) * 255
        return image if image.ndim == 2 else image @ np.array([0.299, 0.587, 0.114])
    image = to_uint8(image)
    if image.ndim == 2:
        return image
    return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2YCrCb)[..., 0]


def _ssim_map(
    first: np.ndarray,
    second: np.ndarray,
    kernel: np.ndarray,
    data_range: float,
    across_channels: bool = False,
    covariance_scale: float = 1.0,
) -> np.ndarray:
    """Return SSIM (Wang et al. 2004, eq. 13) at every place where the window `kernel kernelᵀ` lies
    wholly in the image: float64, H−k+1 × W−k+1 [× 3].

    `across_channels` extends the window over the channels, with the first and last replicated.
    """
    from scipy.ndimage import correlate1d

    border = len(kernel) // 2
    mixing = None
    if across_channels and first.ndim == 3:
        mixing = correlate1d(np.eye(first.shape[2]), kernel, axis=1, mode="nearest")

    def window_mean(image: np.ndarray) -> np.ndarray:
        image = correlate1d(image, kernel, axis=0)[border:-border]
        image = correlate1d(image, kernel, axis=1)[:, border:-border]
        return image if mixing is None else image @ mixing

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    rows, columns = first.shape[0] - 2 * border, first.shape[1] - 2 * border
    similarity = np.empty((rows, columns, *first.shape[2:]))
    for top in range(0, rows, _STRIP_ROWS):
        strip = slice(top, top + _STRIP_ROWS + 2 * border)
        x, y = first[strip].astype(np.float64), second[strip].astype(np.float64)
        mean_x, mean_y = window_mean(x), window_mean(y)
        mean_xy, mean_squares = mean_x * mean_y, mean_x**2 + mean_y**2
        covariance = covariance_scale * (window_mean(x * y) - mean_xy)
        variances = covariance_scale * (window_mean(x * x + y * y) - mean_squares)
        similarity[top : top + _STRIP_ROWS] = ((2 * mean_xy + c1) * (2 * covariance + c2)) / (
            (mean_squares + c1) * (variances + c2)
        )
    return similarity
