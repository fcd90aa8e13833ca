"""Methods without learning, of well-kept libraries, to compare the networks with.

Colour images are H×W×3 floats, about [0,1], in and out; results may leave that range a little.
Every parameter below has the value, on a coarse grid, with the best mean PSNR on six photographs of
BSD400 that the networks were not trained on.

For rain no library that is kept up has a method; `opening` stands for what a line of code does.
BM3D (PyPI: bm3d) is free for non-commercial use only, so this project does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from skimage import morphology, restoration
from torch import Tensor

from dgunet.Compressive_Sensing.DGUNet import BLOCK, DGUNet
from dgunet.data.degradations import (
    PRESETS,
    Noise,
    linear_to_srgb,
    pair_generator,
    shake_kernel,
    srgb_to_linear,
)
from dgunet.images.files import to_tensor

MARGIN = 24  # pixels by which an image is continued before deconvolution; no kernel is wider


def restorations(preset: str) -> dict[str, Callable]:
    """Return the methods tuned for a degradation, by name: functions of a sample, which has the
    image `degraded` and a `name`. BM3D needs no tuning: it is told σ, whatever that is."""
    if preset == "blur_mild":
        gaussian = gaussian_kernel(1.1)
        return {
            "Richardson–Lucy, Gaussian": lambda s: richardson_lucy(s.degraded, gaussian, 8),
            "Richardson–Lucy, true kernel": lambda s: richardson_lucy(
                s.degraded, true_kernel(s.name, preset), 80
            ),
        }
    if preset == "rain_medium":
        return {"opening": lambda s: opening(s.degraded)}
    if not isinstance(PRESETS[preset], Noise):
        return {}
    sigma = PRESETS[preset].sigma / 255
    tuned = {"non-local means": lambda s: non_local_means(s.degraded, sigma)}
    return (tuned if preset == "gaussian25" else {}) | {"BM3D": lambda s: bm3d(s.degraded, sigma)}


def opening(rainy: np.ndarray) -> np.ndarray:
    """Remove what is brighter than its surroundings and less than three pixels wide, as upright
    streaks are: a grey opening with a horizontal line of three pixels."""
    return morphology.opening(rainy, np.ones((1, 3, 1)))


def non_local_means(noisy: np.ndarray, sigma: float) -> np.ndarray:
    """Average pixels whose 5×5 patches look alike (Buades, Coll and Morel, 2005). `sigma` of 1."""
    patches = {"patch_size": 5, "patch_distance": 6, "fast_mode": False, "channel_axis": -1}
    return restoration.denoise_nl_means(noisy, h=0.8 * sigma, sigma=sigma, **patches)


def bm3d(noisy: np.ndarray, sigma: float) -> np.ndarray:
    """Filter groups of like patches together (colour BM3D: Dabov et al., 2007; Mäkinen et al.,
    2020). `sigma` of 1."""
    import bm3d as package

    return package.bm3d_rgb(noisy, sigma)


def richardson_lucy(blurred: np.ndarray, kernel: np.ndarray, iterations: int) -> np.ndarray:
    """Deconvolve (Richardson, 1972; Lucy, 1974) each channel in linear light, where the blur
    happened, continued by reflection beyond the borders."""
    light = srgb_to_linear(blurred)
    light = np.pad(light, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), mode="reflect")
    channels = np.moveaxis(light, -1, 0)
    sharp = [restoration.richardson_lucy(channel, kernel, iterations) for channel in channels]
    light = np.stack(sharp, axis=-1)[MARGIN:-MARGIN, MARGIN:-MARGIN]
    return linear_to_srgb(np.clip(light, 0, 1))


def true_kernel(name: str, preset: str) -> np.ndarray:
    """Return the kernel that blurs the photograph of that name with seed 0."""
    rng = pair_generator(0, preset, name)
    return shake_kernel(rng.uniform(*PRESETS[preset].extent), rng)


def gaussian_kernel(sigma: float) -> np.ndarray:
    """Return a Gaussian of sum 1, cut off beyond 3σ."""
    radius = int(np.ceil(3 * sigma))
    line = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    return np.outer(line, line) / line.sum() ** 2


def minimum_norm(network: DGUNet, y: Tensor) -> Tensor:
    """Return the image of least norm whose measurements by a network are y, N×m×H/32×W/32:
    Φᵀ(ΦΦᵀ)⁻¹ y, block by block."""
    Phi = network.A.Phi.detach().double()
    return network.A.adjoint(torch.einsum("km,nmhw->nkhw", torch.inverse(Phi @ Phi.T).float(), y))


def little_variation(network: DGUNet, y: Tensor) -> Tensor:
    """Return an image of little total variation whose measurements are y: denoising (Chambolle,
    2004) and the projection onto Φx = y in turn."""
    x = minimum_norm(network, y)
    for _ in range(20):
        smooth = restoration.denoise_tv_chambolle(x[0, 0].numpy(), weight=0.02)
        x = torch.from_numpy(smooth).float()[None, None]
        x = x + minimum_norm(network, y - network.measure(x))
    return x


RECONSTRUCTIONS = {"linear": minimum_norm, "total variation": little_variation}


@torch.inference_mode()
def reconstruct(method: str, network: DGUNet, image: np.ndarray) -> np.ndarray:
    """Measure an image, float32 H×W in [0,1], and return what a method of RECONSTRUCTIONS makes of
    that, clamped to [0,1]."""
    height, width = image.shape
    padded = np.pad(image, ((0, -height % BLOCK), (0, -width % BLOCK)))
    measured = network.measure(to_tensor(padded)[None])
    made = RECONSTRUCTIONS[method](network, measured)
    return made[0, 0, :height, :width].clamp(0, 1).numpy()
