"""DGUNet and DGUNet_plus: three-channel images, unknown degradation.

Mou, Wang, Zhang, "Deep Generalized Unfolding Networks for Image Restoration", CVPR 2022.

Restoration solves  min_x ½‖A x − y‖² + λ J(x)  by proximal gradient descent from x = y,

    v = x − ρ Aᵀ(A x − y)      FGDM, the flexible gradient descent module,
    x = prox(v)                IPMM, the informative proximal mapping module,

unfolded into K = 7 stages with learned A, Aᵀ and ρ. Each IPMM fuses the features of the one before:
ISFF, the inter-stage feature fusion. Shapes: batch N, height H, width W, C feature channels.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgunet.model.layers import InstanceNorm, PReLU, project
from dgunet.model.network import Network

# The task and its sizes: all in which the three copies of this file differ.
TASK = "Deraining"
WIDTH, STEP, EXTRA = 40, 20, 16
PLUS_WIDTH, PLUS_STEP = 40, 20
# End of the sizes.


def conv(in_width: int, out_width: int, kernel: int = 3, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(in_width, out_width, kernel, padding=kernel // 2, bias=bias)


class Operator(nn.Sequential):
    """A learned A or Aᵀ:  z + conv(PReLU(conv(z))).  N×3×H×W → N×3×H×W."""

    def __init__(self, slope: PReLU):
        super().__init__(conv(3, 64), slope, conv(64, 3))

    def forward(self, z: Tensor) -> Tensor:
        return z + super().forward(z)


class FGDM(nn.Module):
    """The gradient step  v = x − ρ Aᵀ(A x − y).  x, y: N×3×H×W → v: N×3×H×W.

    All operators of a network share one PReLU slope."""

    def __init__(self, slope: PReLU):
        super().__init__()
        self.A = Operator(slope)
        self.A_adjoint = Operator(slope)
        self.step_size = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x - self.step_size * self.A_adjoint(self.A(x) - y)


class CAB(nn.Module):
    """Channel attention block:  z + a·g,  g = conv(PReLU(conv(z))),  with one weight per channel,
    a = σ(conv(ReLU(conv(mean of g over H, W)))).  N×C×H×W → N×C×H×W."""

    def __init__(self, width: int, slope: PReLU):
        super().__init__()
        self.conv1 = conv(width, width, bias=False)
        self.slope = slope
        self.conv2 = conv(width, width, bias=False)
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.squeeze = conv(width, width // 4, 1, bias=False)
        self.excite = conv(width // 4, width, 1, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        g = self.conv2(self.slope(self.conv1(z)))
        a = torch.sigmoid(self.excite(F.relu(self.squeeze(self.mean(g)))))
        return torch.addcmul(z, g, a)


class ConvBlock(nn.Module):
    """Two convolutions beside a 1×1 one. In the encoder, half of the channels between the two are
    normalised by each image's own statistics.  N×in×H×W → N×out×H×W."""

    def __init__(self, in_width: int, out_width: int, normalise: bool = False):
        super().__init__()
        self.conv1 = conv(in_width, out_width)
        self.norm = InstanceNorm(out_width // 2) if normalise else None
        self.conv2 = conv(out_width, out_width)
        self.identity = conv(in_width, out_width, 1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.conv1(z)
        if self.norm is not None:
            half = slice(self.norm.num_features)
            h[:, half] = self.norm(h[:, half])
        h = self.conv2(F.leaky_relu_(h, 0.2))
        return self.identity(z).add_(F.leaky_relu_(h, 0.2))


class ISFF(nn.Module):
    """Inter-stage feature fusion at one scale of the encoder:  h·σ(conv(u)) + conv(u) + h,
    u = LeakyReLU(conv(e) + conv(d)),  from the previous stage's encoder features e (N×out×H×W) and
    decoder features d (N×in×H×W).  h: N×out×H×W → N×out×H×W.

    In two steps, `join` and `forward`: u takes half the memory of e and d."""

    def __init__(self, in_width: int, out_width: int):
        super().__init__()
        self.from_encoder = conv(out_width, out_width)
        self.from_decoder = conv(in_width, out_width)
        self.gate = conv(out_width, out_width)
        self.shift = conv(out_width, out_width)

    def join(self, e: Tensor, d: Tensor) -> Tensor:
        return F.leaky_relu_(self.from_encoder(e).add_(self.from_decoder(d)), 0.1)

    def forward(self, h: Tensor, u: Tensor) -> Tensor:
        return self.shift(u).add_(h).addcmul_(h, torch.sigmoid_(self.gate(u)))


class Merge(nn.Module):
    """Joins the previous stage's features b to z:  conv([z, P]) + z  with b's projection
    P = Vᵀ(VVᵀ)⁻¹V bᵀ  onto 16 learned maps  V = conv([z, b]).  z, b: N×C×H×W → N×C×H×W."""

    def __init__(self, width: int):
        super().__init__()
        self.basis = conv(2 * width, 16)
        self.fuse = conv(2 * width, width)

    def forward(self, z: Tensor, b: Tensor) -> Tensor:
        V = self.basis(torch.cat([z, b], dim=1))
        return self.fuse(torch.cat([z, project(b, V)], dim=1)).add_(z)


class SAM(nn.Module):
    """The stage's image  conv(d) + v  (N×3×H×W) and features  conv(d) + d  (N×C×H×W)."""

    def __init__(self, width: int):
        super().__init__()
        self.features = conv(width, width, 1, bias=False)
        self.image = conv(width, 3, 1, bias=False)

    def forward(self, d: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.image(d) + v, self.features(d) + d


# What a stage hands to the next: the features of its encoder and decoder at scale 1, of both at ½,
# of both at ¼, and SAM's. The next stage takes them out, so that none is kept longer than needed.
Features = list[Tensor]


class IPMM(nn.Module):
    """The proximal step  x = prox(v),  a U-Net.  v: N×3×H×W and the previous stage's features (none
    in the first stage) → x: N×3×H×W and the features for the next.

    The encoder's blocks are w₀→w₁, w₁→w₂, w₂→w₃ wide at scale 1, ½, ¼, and w₃→w₃ at ⅛."""

    def __init__(self, widths: list[int], slope: PReLU, first: bool):
        super().__init__()
        steps = list(pairwise(widths))
        self.shallow = nn.Sequential(conv(3, widths[0], bias=False), CAB(widths[0], slope))
        self.merge = None if first else Merge(widths[0])
        self.encoder = nn.ModuleList(ConvBlock(i, o, normalise=True) for i, o in steps)
        self.fusion = nn.ModuleList(ISFF(i, o) for i, o in steps if not first)
        self.down = nn.ModuleList(nn.Conv2d(o, o, 4, 2, 1, bias=False) for _, o in steps)
        self.bottom = ConvBlock(widths[-1], widths[-1], normalise=True)
        self.up = nn.ModuleList(nn.ConvTranspose2d(o, i, 2, 2) for i, o in steps)
        self.skip = nn.ModuleList(conv(o, i) for i, o in steps)
        self.decoder = nn.ModuleList(ConvBlock(2 * i, i) for i, _ in steps)
        self.sam = SAM(widths[0])

    def forward(self, v: Tensor, previous: Features) -> tuple[Tensor, Features]:
        joined = [fusion.join(previous.pop(0), previous.pop(0)) for fusion in self.fusion]
        z = self.shallow(v)
        if self.merge is not None:
            z = self.merge(z, previous.pop())
        features = []
        for scale in range(3):
            z = self.encoder[scale](z)
            if joined:
                z = self.fusion[scale](z, joined.pop(0))
            features.append(z)
            z = self.down[scale](z)
        z = self.bottom(z)
        for scale in (2, 1, 0):
            z = torch.cat([self.up[scale](z), self.skip[scale](features[scale])], dim=1)
            z = self.decoder[scale](z)
            features.insert(scale + 1, z)
        x, sam = self.sam(z, v)
        return x, [*features, sam]


class LastIPMM(nn.Module):
    """The last stage's proximal step: no U-Net, and added to y.  v, y: N×3×H×W and the features b
    of the previous stage's SAM, N×C×H×W → x: N×3×H×W.

    DGUNet joins b by a convolution to C + `extra` channels, DGUNet_plus, where `extra` is None, by
    Merge."""

    def __init__(self, width: int, slope: PReLU, extra: int | None):
        super().__init__()
        self.shallow = nn.Sequential(conv(3, width, bias=False), CAB(width, slope))
        self.merge = Merge(width) if extra is None else None
        self.concat = None if extra is None else conv(2 * width, width + extra, bias=False)
        self.image = conv(width + (extra or 0), 3, bias=False)

    def forward(self, v: Tensor, y: Tensor, b: Tensor) -> Tensor:
        z = self.shallow(v)
        z = self.merge(z, b) if self.concat is None else self.concat(torch.cat([z, b], dim=1))
        return self.image(z) + y


class DGUNet(Network):
    """Degraded images (N×3×H×W in [0,1]) → the K stage images, last stage first. The stages between
    the first and the last share one set of weights.

    H and W must be multiples of 8 and not both 8, else ValueError. `width` C and `width_step` s
    make the U-Net's widths C + s·i, `last_extra` widens the last stage, `stages` is K."""

    task, channels = TASK, 3
    multiple_of, min_long_side, padding = 8, 16, "reflect"

    def __init__(
        self, width: int = WIDTH, width_step: int = STEP, last_extra: int = EXTRA, stages: int = 7
    ):
        super().__init__(width=width, width_step=width_step, last_extra=last_extra, stages=stages)
        self.build(min(stages, 3), PReLU(), PReLU(), last_extra)

    def build(self, distinct: int, slope: PReLU, middle_slope: PReLU, extra: int | None):
        """Make the modules of as many stages as are distinct, with the PReLU slopes of the CABs."""
        widths = [self.sizes["width"] + self.sizes["width_step"] * i for i in range(4)]
        operator_slope = PReLU()
        self.fgdm = nn.ModuleList(FGDM(operator_slope) for _ in range(distinct))
        self.ipmm = nn.ModuleList([IPMM(widths, slope, first=True)])
        self.ipmm.extend(IPMM(widths, middle_slope, first=False) for _ in range(distinct - 2))
        self.last = LastIPMM(widths[0], slope, extra)

    def forward(self, degraded: Tensor) -> list[Tensor]:
        self.check_image(degraded)
        x, features, images = degraded, [], []
        for k in range(self.sizes["stages"] - 1):
            i = min(k, len(self.ipmm) - 1)  # DGUNet stays at its second stage's modules
            v = self.fgdm[i](x, degraded)
            x, features = self.run_stage(k, self.ipmm[i], v, features)
            images.append(x)
        v = self.fgdm[-1](x, degraded)
        features = features[-1:]  # the last stage takes SAM's alone
        images.append(self.last(v, degraded, features.pop()))
        return images[::-1]


class DGUNet_plus(DGUNet):
    """DGUNet with modules of its own for every stage; all CABs share one PReLU slope."""

    def __init__(self, width: int = PLUS_WIDTH, width_step: int = PLUS_STEP, stages: int = 7):
        Network.__init__(self, width=width, width_step=width_step, stages=stages)
        slope = PReLU()
        self.build(stages, slope, slope, None)
