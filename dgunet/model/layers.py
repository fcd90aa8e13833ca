"""Layers that PyTorch lacks or whose CPU kernels are slow, and the projection of DGUNet's Merge."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PReLU(nn.PReLU):
    """max(z, 0) + slope·min(z, 0), with one learned slope in z's precision.

    On a CPU, PyTorch's own backward pass of it takes as long as a convolution's; this one a tenth
    of that. Where no gradients are recorded it writes over z, like `nn.ReLU(inplace=True)`."""

    def __init__(self):
        super().__init__(1)

    def forward(self, z: Tensor) -> Tensor:
        slope = self.weight.to(z.dtype)
        if z.device.type != "cpu" or torch.compiler.is_compiling():
            return F.prelu(z, slope)
        if torch.is_grad_enabled():
            return _PReLU.apply(z, slope)
        return F.leaky_relu_(z, slope.item())


class _PReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(z, slope)
        return F.leaky_relu(z, slope.item())

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        z, slope = ctx.saved_tensors
        to_z = torch.ops.aten.leaky_relu_backward(gradient, z, slope.item(), False)
        to_slope = z.clamp(max=0).mul_(gradient).sum()
        return to_z, to_slope.reshape(1)


def float32_or_better(z: Tensor) -> torch.dtype:
    """Return the precision to compute in where half of it does not suffice."""
    # Not `torch.promote_types`: PyTorch 2.6 exports it as an operator, and cannot read that again.
    return torch.float64 if z.dtype == torch.float64 else torch.float32


class InstanceNorm(nn.InstanceNorm2d):
    """(z − mean) / √(variance + ε), each channel by its own statistics over H, W, then scaled and
    shifted by learned numbers.  N×C×H×W → N×C×H×W, computed in float32 or better.

    PyTorch's own copies what lies in memory in channels_last to and fro."""

    def __init__(self, width: int):
        super().__init__(width, affine=True)

    def forward(self, z: Tensor) -> Tensor:
        h = z.to(float32_or_better(z))
        # Centred first: squares of what has a large mean would lose its variance to rounding.
        h = h - h.mean((2, 3), keepdim=True)
        scale = (h.square().mean((2, 3), keepdim=True) + self.eps).rsqrt()
        weight, bias = self.weight[:, None, None], self.bias[:, None, None]
        return torch.addcmul(bias.to(h.dtype), h, scale * weight).to(z.dtype)


def project(b: Tensor, V: Tensor) -> Tensor:
    """Return b's projection  P = Vᵀ(VVᵀ)⁻¹V bᵀ  onto the space that V's maps span, where each map
    is divided by 1e-6 + its sum of absolute values.

    VVᵀ is badly conditioned on flat images and singular on constant ones. Hence float32 or better
    whatever the autocast, float64 for VVᵀ itself, and a ridge: below float32's rounding of VVᵀ, yet
    it bounds the gradients.

    Args:
        b: N×C×H×W, H·W a multiple of 64.
        V: N×16×H×W.

    Returns:
        N×C×H×W in b's precision.
    """
    with torch.autocast(b.device.type, enabled=False):
        full = float32_or_better(b)
        exact = full if b.device.type == "mps" else torch.float64  # mps has no float64
        # Transposed, a row for each pixel: so they lie in memory in channels_last.
        maps, rows = (x.to(full).permute(0, 2, 3, 1).flatten(1, 2) for x in (V, b))
        maps = maps / (1e-6 + maps.abs().sum(1, keepdim=True))
        # Summed over the pixels in two steps: a GPU would take one on a single of its processors.
        gram = maps.to(exact).unflatten(1, (64, -1))
        gram = (gram.mT @ gram).sum(1)
        ridge = max(1e-10, torch.finfo(exact).eps) * gram.diagonal(dim1=1, dim2=2).sum(1)
        gram = gram + torch.diag_embed((ridge + 1e-30)[:, None].expand(-1, maps.shape[2]))
        weights = torch.linalg.solve_ex(gram, (maps.mT @ rows).to(exact))[0].to(full)
        projection = (maps @ weights).unflatten(1, b.shape[2:])
        return projection.permute(0, 3, 1, 2).to(b.dtype)
