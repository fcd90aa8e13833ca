"""PReLU as PyTorch has it, with a faster backward pass on the CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PReLU(nn.PReLU):
    """max(z, 0) + slope·min(z, 0), with one learned slope.

    On a CPU, PyTorch's own backward pass of it takes as long as a convolution's; this one a tenth
    of that."""

    def __init__(self):
        super().__init__(1)

    def forward(self, z: Tensor) -> Tensor:
        if z.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _PReLU.apply(z, self.weight.to(z.dtype))
        return super().forward(z)


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
