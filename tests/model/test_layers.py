import pytest
import torch
from torch import nn

from dgunet.model.layers import PReLU


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("slope", [0.25, 1.0, 0.0, -0.3, 1.7])
def test_prelu_is_pytorchs(slope, dtype, memory_format):
    torch.manual_seed(0)
    z = torch.randn(2, 5, 7, 6).to(dtype).to(memory_format=memory_format)
    z[0, 0, 0, :3] = torch.tensor([0.0, -0.0, 1.0])
    gradient = torch.randn_like(z)
    results = []
    for kind in (lambda: nn.PReLU(1), PReLU):
        prelu = kind().to(dtype)
        nn.init.constant_(prelu.weight, slope)
        given = z.clone().requires_grad_()
        made = prelu(given)
        made.backward(gradient)
        results.append((made.detach(), given.grad, prelu.weight.grad))
    (made, to_z, to_slope), expected = results[1], results[0]
    assert torch.equal(made, expected[0]) and torch.equal(to_z, expected[1])
    assert to_slope.shape == expected[2].shape and to_slope.dtype == dtype
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(to_slope, expected[2], rtol=tolerance, atol=tolerance)
