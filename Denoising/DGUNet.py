"""DGUNet and DGUNet_plus: three-channel images, unknown degradation.

Mou, Wang, Zhang, "Deep Generalized Unfolding Networks for Image Restoration", CVPR 2022.

Restoration solves  min_x ½‖A x − y‖² + λ J(x)  by proximal gradient descent,

    v = x − ρ Aᵀ(A x − y)      FGDM, the flexible gradient descent module,
    x = prox(v)                IPMM, the informative proximal mapping module (a small U-Net),

unfolded into K = 7 stages with learned A, Aᵀ and ρ. From each U-Net to the next stage's runs the
inter-stage feature fusion, ISFF. DGUNet repeats one stage between the first and the last;
DGUNet_plus gives each its own weights.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration.network import Network

# The task and its sizes: all in which the three copies of this file differ.
TASK = "Denoising"
DGUNET = {"width": 80, "width_step": 48, "last_extra": 32}
DGUNET_PLUS = {"width": 80, "width_step": 40}
# End of the sizes.


def conv(in_width: int, out_width: int, kernel: int = 3, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(in_width, out_width, kernel, padding=kernel // 2, bias=bias)


class Operator(nn.Module):
    """A learned A or Aᵀ:  R(z) = z + conv(PReLU(conv(z))).  N×3×H×W → N×3×H×W."""

    def __init__(self, slope: nn.PReLU):
        super().__init__()
        self.expand = conv(3, 64)
        self.slope = slope
        self.reduce = conv(64, 3)

    def forward(self, z: Tensor) -> Tensor:
        return z + self.reduce(self.slope(self.expand(z)))


class FGDM(nn.Module):
    """The gradient step  v = x − ρ Aᵀ(A x − y).  N×3×H×W → N×3×H×W.

    All operators of a network share one PReLU slope.
    """

    def __init__(self, slope: nn.PReLU):
        super().__init__()
        self.A = Operator(slope)
        self.A_adjoint = Operator(slope)
        self.step_size = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x - self.step_size * self.A_adjoint(self.A(x) - y)


class CAB(nn.Module):
    """Channel attention block:  z + a·g,  g = conv(PReLU(conv(z))),  and per channel the weight
    a = σ(conv(ReLU(conv(mean(g))))).  N×C×H×W → N×C×H×W."""

    def __init__(self, width: int, slope: nn.PReLU):
        super().__init__()
        self.conv1 = conv(width, width, bias=False)
        self.slope = slope
        self.conv2 = conv(width, width, bias=False)
        self.squeeze = conv(width, width // 4, 1, bias=False)
        self.excite = conv(width // 4, width, 1, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        g = self.conv2(self.slope(self.conv1(z)))
        a = torch.sigmoid(self.excite(F.relu(self.squeeze(g.mean((2, 3), keepdim=True)))))
        return z + a * g


class ConvBlock(nn.Module):
    """Two convolutions beside a 1×1 one; in the encoder half of the channels are normalised, each
    image by its own statistics.  N×in×H×W → N×out×H×W."""

    def __init__(self, in_width: int, out_width: int, normalise: bool = False):
        super().__init__()
        self.conv1 = conv(in_width, out_width)
        self.norm = nn.InstanceNorm2d(out_width // 2, affine=True) if normalise else None
        self.conv2 = conv(out_width, out_width)
        self.identity = conv(in_width, out_width, 1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.conv1(z)
        if self.norm is not None:
            first, second = h.chunk(2, dim=1)
            h = torch.cat([self.norm(first), second], dim=1)
        h = self.conv2(F.leaky_relu(h, 0.2))
        return F.leaky_relu(h, 0.2) + self.identity(z)


class ISFF(nn.Module):
    """Inter-stage feature fusion at one scale:  h·σ(conv(u)) + conv(u) + h  with
    u = LeakyReLU(conv(e) + conv(d))  of the previous stage's encoder features e (N×out×H×W) and
    decoder features d (N×in×H×W).  N×out×H×W → N×out×H×W."""

    def __init__(self, in_width: int, out_width: int):
        super().__init__()
        self.from_encoder = conv(out_width, out_width)
        self.from_decoder = conv(in_width, out_width)
        self.gate = conv(out_width, out_width)
        self.shift = conv(out_width, out_width)

    def forward(self, h: Tensor, e: Tensor, d: Tensor) -> Tensor:
        u = F.leaky_relu(self.from_encoder(e) + self.from_decoder(d), 0.1)
        return h * torch.sigmoid(self.gate(u)) + self.shift(u) + h


class Features(NamedTuple):
    """What a stage hands to the next: its U-Net's features at scale 1, ½, ¼, and SAM's."""

    encoder: list[Tensor]
    decoder: list[Tensor]
    sam: Tensor


class Encoder(nn.Module):
    """Blocks w₀→w₁→w₂→w₃ at scale 1, ½, ¼, each down-sampled, and w₃→w₃ at ⅛.
    N×w₀×H×W → the outputs of the first three, and the last's N×w₃×H/8×W/8."""

    def __init__(self, widths: list[int], fuse: bool):
        super().__init__()
        steps = list(pairwise(widths))
        self.blocks = nn.ModuleList(ConvBlock(i, o, normalise=True) for i, o in steps)
        self.fusions = nn.ModuleList(ISFF(i, o) for i, o in steps if fuse)
        self.down = nn.ModuleList(nn.Conv2d(o, o, 4, 2, 1, bias=False) for _, o in steps)
        self.bottom = ConvBlock(widths[-1], widths[-1], normalise=True)

    def forward(self, z: Tensor, previous: Features | None) -> tuple[list[Tensor], Tensor]:
        outputs = []
        for scale, (block, down) in enumerate(zip(self.blocks, self.down, strict=True)):
            h = block(z)
            if previous is not None:
                h = self.fusions[scale](h, previous.encoder[scale], previous.decoder[scale])
            outputs.append(h)
            z = down(h)
        return outputs, self.bottom(z)


class Decoder(nn.Module):
    """At scale ¼, ½, 1: up-sample, join the encoder's features of that scale, block.
    The encoder's outputs → the three blocks' outputs, scale 1 (N×w₀×H×W) first."""

    def __init__(self, widths: list[int]):
        super().__init__()
        steps = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for i, o in steps)
        self.skip = nn.ModuleList(conv(i, o) for i, o in steps)
        self.blocks = nn.ModuleList(ConvBlock(2 * o, o) for _, o in steps)

    def forward(self, encoded: list[Tensor], z: Tensor) -> list[Tensor]:
        outputs = []
        for up, skip, block, e in zip(self.up, self.skip, self.blocks, encoded[::-1], strict=True):
            z = block(torch.cat([up(z), skip(e)], dim=1))
            outputs.append(z)
        return outputs[::-1]


class SAM(nn.Module):
    """The stage's image  conv(d) + v  (N×3×H×W) and features  conv(d) + d  (N×C×H×W)."""

    def __init__(self, width: int):
        super().__init__()
        self.features = conv(width, width, 1, bias=False)
        self.image = conv(width, 3, 1, bias=False)

    def forward(self, d: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.image(d) + v, self.features(d) + d


class Merge(nn.Module):
    """Joins the previous stage's features b to z:  conv([z, P]) + z  with b's projection
    P = Vᵀ(VVᵀ)⁻¹V bᵀ  onto 16 learned maps  V = conv([z, b]).  Two N×C×H×W → one."""

    def __init__(self, width: int):
        super().__init__()
        self.basis = conv(2 * width, 16)
        self.fuse = conv(2 * width, width)

    def forward(self, z: Tensor, b: Tensor) -> Tensor:
        projected = self.project(b, self.basis(torch.cat([z, b], dim=1)))
        return self.fuse(torch.cat([z, projected], dim=1)) + z

    @staticmethod
    def project(b: Tensor, basis: Tensor) -> Tensor:
        """VVᵀ is badly conditioned on flat images and singular on constant ones. Hence float32
        whatever the autocast, float64 for the 16×16 system, and a ridge that float32 cannot see."""
        with torch.autocast(b.device.type, enabled=False):
            V = basis.float().flatten(2)
            V = V / (1e-6 + V.abs().sum(2, keepdim=True))
            exact = torch.float32 if b.device.type == "mps" else torch.float64  # mps has no float64
            gram = V.to(exact) @ V.to(exact).mT
            ridge = 100 * torch.finfo(exact).eps * gram.diagonal(dim1=1, dim2=2).sum(1)
            gram = gram + torch.diag_embed(ridge[:, None].expand(-1, V.shape[1]))
            weights = torch.linalg.solve_ex(gram, (V @ b.float().flatten(2).mT).to(exact))[0]
            return (weights.to(V.dtype).mT @ V).view_as(b).to(b.dtype)


def shallow_features(width: int, slope: nn.PReLU) -> nn.Sequential:
    return nn.Sequential(conv(3, width, bias=False), CAB(width, slope))


class Stage(nn.Module):
    """FGDM, then IPMM:  x, y (N×3×H×W) and the previous features → new x, new features."""

    def __init__(self, widths: list[int], operator: nn.PReLU, attention: nn.PReLU, first: bool):
        super().__init__()
        self.gradient = FGDM(operator)
        self.shallow = shallow_features(widths[0], attention)
        self.merge = None if first else Merge(widths[0])
        self.encoder = Encoder(widths, fuse=not first)
        self.decoder = Decoder(widths)
        self.sam = SAM(widths[0])

    def forward(self, x: Tensor, y: Tensor, previous: Features | None) -> tuple[Tensor, Features]:
        v = self.gradient(x, y)
        z = self.shallow(v)
        if previous is not None:
            z = self.merge(z, previous.sam)
        encoded, bottom = self.encoder(z, previous)
        decoded = self.decoder(encoded, bottom)
        image, features = self.sam(decoded[0], v)
        return image, Features(encoded, decoded, features)


class LastStage(nn.Module):
    """FGDM, then convolutions instead of a U-Net, added to y.  → N×3×H×W.

    DGUNet joins the previous features by a convolution to C + `extra` channels, DGUNet_plus by
    Merge.
    """

    def __init__(self, width: int, operator: nn.PReLU, attention: nn.PReLU, extra: int | None):
        super().__init__()
        self.gradient = FGDM(operator)
        self.shallow = shallow_features(width, attention)
        self.merge = Merge(width) if extra is None else None
        self.concat = None if extra is None else conv(2 * width, width + extra, bias=False)
        self.image = conv(width + (extra or 0), 3, bias=False)

    def forward(self, x: Tensor, y: Tensor, previous: Features) -> Tensor:
        z = self.shallow(self.gradient(x, y))
        if self.concat is None:
            return self.image(self.merge(z, previous.sam)) + y
        return self.image(self.concat(torch.cat([z, previous.sam], dim=1))) + y


class DGUNet(Network):
    """The network:  degraded y (N×3×H×W in [0,1]) → the K stage images, last stage first.

    H and W must be multiples of 8 and not both 8, else ValueError. `width` C and `width_step` s
    make the U-Net's widths C + s·i, `last_extra` widens the last stage, `stages` is K.
    """

    task, channels, multiple, least = TASK, 3, 8, 16

    def __init__(
        self,
        width: int = DGUNET["width"],
        width_step: int = DGUNET["width_step"],
        last_extra: int = DGUNET["last_extra"],
        stages: int = 7,
    ):
        super().__init__(width=width, width_step=width_step, last_extra=last_extra, stages=stages)
        self.build([nn.PReLU()][: stages - 2], nn.PReLU(), last_extra)

    def build(self, middle_slopes: list[nn.PReLU], slope: nn.PReLU, extra: int | None) -> None:
        widths = [self.sizes["width"] + self.sizes["width_step"] * scale for scale in range(4)]
        operator = nn.PReLU()
        self.first = Stage(widths, operator, slope, first=True)
        self.middle = nn.ModuleList(
            Stage(widths, operator, own, first=False) for own in middle_slopes
        )
        self.last = LastStage(widths[0], operator, slope, extra)

    def forward(self, degraded: Tensor) -> list[Tensor]:
        self.check_image(degraded)
        x, features = self.first(degraded, degraded, None)
        images = [x]
        for k in range(self.sizes["stages"] - 2):
            x, features = self.middle[k % len(self.middle)](x, degraded, features)
            images.append(x)
        images.append(self.last(x, degraded, features))
        return images[::-1]


class DGUNet_plus(DGUNet):
    """DGUNet with a separate set of weights for every stage."""

    def __init__(
        self,
        width: int = DGUNET_PLUS["width"],
        width_step: int = DGUNET_PLUS["width_step"],
        stages: int = 7,
    ):
        Network.__init__(self, width=width, width_step=width_step, stages=stages)
        slope = nn.PReLU()
        self.build([slope] * (stages - 2), slope, None)
