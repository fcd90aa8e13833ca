"""deepinv, a library for inverse problems: our networks as its denoisers, reconstructors, physics.

physics = CompressiveSensing(network, (1, 256, 256))      y = Φ x, block by block
x = Reconstructor(network)(physics(image), physics)

physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(25 / 255))
x = Reconstructor(denoiser)(physics(image), physics)
"""

from __future__ import annotations

import deepinv
from torch import Tensor, nn

from dgunet.inference.restorer import Restorer
from dgunet.model.network import Network


class Reconstructor(deepinv.models.Reconstructor):
    """A network of any task as deepinv's reconstructor, not clamped.

    Image restoration takes the degraded image (N×3×H×W), whose degradation it has learned,
    compressive sensing the measurements (N×m×H/32×W/32) of `CompressiveSensing`."""

    def __init__(self, network: Network):
        super().__init__()
        self.network = network

    def forward(self, y: Tensor, physics: deepinv.physics.Physics | None = None, **_) -> Tensor:
        if hasattr(self.network, "reconstruct"):
            return self.network.reconstruct(y)[0]
        restorer = Restorer(self.network, device=y.device, tile=0, optimize=False)
        return restorer.restore(y).clone()  # so that autograd may use it as a constant


class Denoiser(deepinv.models.Denoiser):
    """A network of image restoration as deepinv's denoiser.  N×3×H×W → N×3×H×W, not clamped.

    It is for the noise that it was trained on: the noise level σ it is called with is not used."""

    def __init__(self, network: Network):
        super().__init__()
        self.reconstructor = Reconstructor(network)

    def forward(self, x: Tensor, sigma: float | Tensor | None = None, **_) -> Tensor:
        return self.reconstructor(x)


class CompressiveSensing(deepinv.physics.LinearPhysics):
    """The operator of a compressive sensing network, y = Φ x for each 32×32 block of the image.
    N×1×H×W ↔ N×m×H/32×W/32; H and W are multiples of 32.

    Args:
        network: whose Φ it is; shared, not copied.
        img_size: 1, H, W.
        options: `deepinv.physics.LinearPhysics`' own, such as `noise_model`.
    """

    def __init__(self, network: Network, img_size: tuple[int, int, int], **options):
        super().__init__(img_size=img_size, **options)
        self.operator: nn.Module = network.A

    def A(self, x: Tensor, **_) -> Tensor:
        return self.operator(x)

    def A_adjoint(self, y: Tensor, **_) -> Tensor:
        return self.operator.adjoint(y)
