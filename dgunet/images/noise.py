"""The standard deviation σ of noise, of 255: in names of degradations, and told from an image."""

import re

import numpy as np

LARGEST = 1024  # pixels: of larger images the middle is looked at


def noise_range(name: str) -> tuple[float, float] | None:
    """Return the range of σ that the name of a Gaussian noise stands for; None for other names.

    >>> noise_range("gaussian25"), noise_range("gaussian0-50"), noise_range("rain_light")
    ((25.0, 25.0), (0.0, 50.0), None)
    """
    found = re.fullmatch(r"gaussian(\d+(?:\.\d+)?)(?:-(\d+(?:\.\d+)?))?", name)
    return (float(found[1]), float(found[2] or found[1])) if found else None


def noise_level(image: np.ndarray) -> float:
    """Return an estimate of the standard deviation of white noise in an image, of 255.

    It is the median of |M ∗ image| / (6 · 0.6745), the mean over the channels. The mask M, [1 −2 1]
    along rows and columns (Immerkær, 1996), answers noise of σ with 6 σ and smooth areas with 0;
    the median (Donoho and Johnstone, 1994) leaves edges out. Fine texture is taken for noise: of
    clean photographs one in twenty is above 8. Clipping takes noise away: of σ = 50 in 8 bits about
    45 are found.

    Args:
        image: H×W or H×W×C; integers of the type's whole range, or floats in [0, 1]. Of images
            with less than 3 pixels in height or width the noise is 0.
    """
    from dgunet.images.files import middle  # which loads OpenCV; a name is read without it

    image = middle(image, LARGEST, LARGEST)
    largest = np.iinfo(image.dtype).max if image.dtype.kind in "iu" else 1
    fine = np.diff(np.diff(image.astype(np.float32), n=2, axis=0), n=2, axis=1)
    if not fine.size:
        return 0.0
    return float(np.median(abs(fine), axis=(0, 1)).mean()) / (6 * 0.6745) * 255 / largest
