"""What restored images before networks learned to: methods of well-kept libraries, to compare with.

Colour images are H×W×3 floats, about [0,1], in and out; results may leave that range a little.
Every parameter below has the value, on a coarse grid, with the best mean PSNR on six photographs of
BSD400 that the shipped networks were not trained on.

For rain no library that is kept up has a method; `opening` stands for what a line of code does.
BM3D (PyPI: bm3d) is free for non-commercial use only, so this project does not depend on it; the
wavelets need PyWavelets.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dgunet.Compressive_Sensing.DGUNet import DGUNet
from dgunet.Compressive_Sensing.measure import zero_pad
from dgunet.data.degradations import linear_to_srgb, srgb_to_linear
from dgunet.images.files import to_tensor

MARGIN = 24  # pixels by which an image is continued before deconvolution; no kernel is wider


def opening(rainy: np.ndarray) -> np.ndarray:
    """Remove what is brighter than its surroundings and less than three pixels wide, as upright
    streaks are: a grey opening with a horizontal line of three pixels."""
    from skimage.morphology import opening

    return opening(rainy, np.ones((1, 3, 1)))


def total_variation(noisy: np.ndarray) -> np.ndarray:
    """Denoise each channel by total variation (Chambolle, 2004)."""
    from skimage.restoration import denoise_tv_chambolle

    return denoise_tv_chambolle(noisy, weight=0.065, channel_axis=-1)


def wavelet(noisy: np.ndarray, sigma: float) -> np.ndarray:
    """Shrink wavelet coefficients in YCbCr (BayesShrink: Chang, Yu and Vetterli, 2000). `sigma` of
    1."""
    from skimage.restoration import denoise_wavelet

    return denoise_wavelet(
        noisy, sigma, wavelet="db2", convert2ycbcr=True, rescale_sigma=True, channel_axis=-1
    )


def non_local_means(noisy: np.ndarray, sigma: float) -> np.ndarray:
    """Average pixels whose 5×5 patches look alike (Buades, Coll and Morel, 2005). `sigma` of 1."""
    from skimage.restoration import denoise_nl_means

    return denoise_nl_means(
        noisy,
        h=0.8 * sigma,
        sigma=sigma,
        patch_size=5,
        patch_distance=6,
        fast_mode=False,
        channel_axis=-1,
    )


def bm3d(noisy: np.ndarray, sigma: float) -> np.ndarray:
    """Filter groups of like patches together (colour BM3D: Dabov et al., 2007; Mäkinen et al.,
    2020). `sigma` of 1."""
    import bm3d as package

    return package.bm3d_rgb(noisy, sigma)


def richardson_lucy(blurred: np.ndarray, kernel: np.ndarray, iterations: int) -> np.ndarray:
    """Deconvolve (Richardson, 1972; Lucy, 1974) in linear light, where the blur happened."""
    from skimage.restoration import richardson_lucy

    return _in_linear_light(blurred, lambda light: richardson_lucy(light, kernel, iterations))


def unsupervised_wiener(blurred: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Deconvolve with a Wiener filter that estimates its own parameters (Orieux, Giovannelli and
    Rodet, 2010), in linear light."""
    from skimage.restoration import unsupervised_wiener

    return _in_linear_light(blurred, lambda light: unsupervised_wiener(light, kernel, rng=0)[0])


def gaussian_kernel(sigma: float) -> np.ndarray:
    """Return a Gaussian of sum 1, cut off beyond 3σ."""
    radius = int(np.ceil(3 * sigma))
    line = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    return np.outer(line, line) / line.sum() ** 2


def minimum_norm(network: DGUNet, y: Tensor) -> Tensor:
    """Return the image of least norm whose measurements are y: Φᵀ(ΦΦᵀ)⁻¹ y, block by block.

    Args:
        network: whose Φ measured.
        y: N×m×H/32×W/32.
    """
    Phi = network.A.Phi.detach().double()
    return network.A.adjoint(torch.einsum("km,nmhw->nkhw", torch.inverse(Phi @ Phi.T).float(), y))


@torch.inference_mode()
def linear_reconstruction(network: DGUNet, image: np.ndarray) -> np.ndarray:
    """Measure an image, uint8 H×W, and return `minimum_norm` of that, float32 in [0,1]."""
    padded = zero_pad(to_tensor(image)[None])
    return _cropped(minimum_norm(network, network.measure(padded)), image)


@torch.inference_mode()
def total_variation_reconstruction(network: DGUNet, image: np.ndarray) -> np.ndarray:
    """Measure an image, uint8 H×W, and return one of little total variation that agrees with the
    measurements, float32 in [0,1]: denoising and the projection onto Φx = y in turn."""
    from skimage.restoration import denoise_tv_chambolle

    y = network.measure(zero_pad(to_tensor(image)[None]))
    x = minimum_norm(network, y)
    for _ in range(20):
        smooth = torch.from_numpy(denoise_tv_chambolle(x[0, 0].numpy(), weight=0.02))
        x = smooth.float()[None, None]
        x = x + minimum_norm(network, y - network.measure(x))
    return _cropped(x, image)


def _cropped(x: Tensor, image: np.ndarray) -> np.ndarray:
    return x[0, 0, : image.shape[0], : image.shape[1]].clamp(0, 1).numpy()


def _in_linear_light(image: np.ndarray, restore: Callable) -> np.ndarray:
    """Apply a method to each channel's light, continued by reflection beyond the borders."""
    light = srgb_to_linear(image)
    light = np.pad(light, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), mode="reflect")
    light = np.stack([restore(channel) for channel in np.moveaxis(light, -1, 0)], axis=-1)
    return linear_to_srgb(np.clip(light[MARGIN:-MARGIN, MARGIN:-MARGIN], 0, 1))
