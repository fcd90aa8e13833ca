"""DGUNet and DGUNet_plus for compressive sensing: one channel, known degradation.

Mou, Wang, Zhang, "Deep Generalized Unfolding Networks for Image Restoration", CVPR 2022.

Each 32×32 block b of the image is measured as  y = Φ b,  Φ: m×1024, learned. Reconstruction solves
min_x ½‖Φ x − y‖² + λ J(x)  by proximal gradient descent from x = Φᵀy,

    v = x − ρ Φᵀ(Φ x − y)      FGDM, the flexible gradient descent module,
    x = prox(v)                IPMM, the informative proximal mapping module,

unfolded into K = 7 stages with learned ρ. Φ acts block by block; the IPMM sees the whole image, and
so removes the edges between blocks. Each IPMM fuses the features of the one before: ISFF, the
inter-stage feature fusion. Shapes: batch N, height H, width W, C feature channels.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgunet.model.layers import InstanceNorm, PReLU
from dgunet.model.network import Network

TASK = "Compressive_Sensing"
BLOCK = 32


def conv(in_width: int, out_width: int, kernel: int = 3, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(in_width, out_width, kernel, padding=kernel // 2, bias=bias)


class Measurement(nn.Module):
    """A = Φ and Aᵀ = Φᵀ on each block.  Image N×1×H×W ↔ measurements N×m×H/32×W/32.

    Both keep the precision of Φ under autocast: the data term is what the image must agree with."""

    def __init__(self, measurements: int):
        super().__init__()
        self.Phi = nn.Parameter(nn.init.xavier_normal_(torch.empty(measurements, BLOCK**2)))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            blocks = F.pixel_unshuffle(x.to(self.Phi.dtype), BLOCK)  # N×1024×H/32×W/32
            return torch.einsum("mp,nphw->nmhw", self.Phi, blocks)

    def adjoint(self, y: Tensor) -> Tensor:
        with torch.autocast(y.device.type, enabled=False):
            blocks = torch.einsum("mp,nmhw->nphw", self.Phi, y.to(self.Phi.dtype))
            return F.pixel_shuffle(blocks, BLOCK)


class FGDM(nn.Module):
    """The gradient step  v = x − ρ (ΦᵀΦ x − Φᵀy).  x, Φᵀy: N×1×H×W → v: N×1×H×W."""

    def __init__(self):
        super().__init__()
        self.step_size = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor, start: Tensor, A: Measurement) -> Tensor:
        return x - self.step_size * (A.adjoint(A(x)) - start)


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
    """Inter-stage feature fusion at one scale of the encoder:  h + u,  u = conv(e) + conv(d),  from
    the previous stage's encoder features e (N×out×H×W) and decoder features d (N×in×H×W).
    h: N×out×H×W → N×out×H×W.

    In two steps, `join` and `forward`: u takes half the memory of e and d."""

    def __init__(self, in_width: int, out_width: int):
        super().__init__()
        self.from_encoder = conv(out_width, out_width)
        self.from_decoder = conv(in_width, out_width)

    def join(self, e: Tensor, d: Tensor) -> Tensor:
        return self.from_encoder(e).add_(self.from_decoder(d))

    def forward(self, h: Tensor, u: Tensor) -> Tensor:
        return u.add_(h)


class SAM(nn.Module):
    """The stage's image  x = conv(d) + v  (N×1×H×W) and, attended by it, the features
    conv(d)·σ(conv(x)) + d  (N×C×H×W)."""

    def __init__(self, width: int):
        super().__init__()
        self.features = conv(width, width, 1, bias=False)
        self.image = conv(width, 1, 1, bias=False)
        self.attention = conv(1, width, 1, bias=False)

    def forward(self, d: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        x = self.image(d) + v
        return x, torch.addcmul(d, self.features(d), torch.sigmoid(self.attention(x)))


# What a stage hands to the next: the features of its encoder and decoder at scale 1, of both at ½,
# of both at ¼, and SAM's. The next stage takes them out, so that none is kept longer than needed.
Features = list[Tensor]


class IPMM(nn.Module):
    """The proximal step  x = prox(v),  a U-Net.  v: N×1×H×W and the previous stage's features (none
    in the first stage) → x: N×1×H×W and the features for the next.

    The encoder's blocks are w₀→w₁, w₁→w₂, w₂→w₃ wide at scale 1, ½, ¼, and w₃→w₃ at ⅛."""

    def __init__(self, widths: list[int], slope: PReLU, first: bool):
        super().__init__()
        steps = list(pairwise(widths))
        self.shallow = nn.Sequential(conv(1, widths[0], bias=False), CAB(widths[0], slope))
        self.merge = None if first else conv(2 * widths[0], widths[0], bias=False)
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
            z = self.merge(torch.cat([z, previous.pop()], dim=1))
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
    """The last stage's proximal step: no U-Net.  v: N×1×H×W and the features b of the previous
    stage's SAM, N×C×H×W → x: N×1×H×W."""

    def __init__(self, width: int, slope: PReLU, extra: int):
        super().__init__()
        self.shallow = nn.Sequential(conv(1, width, bias=False), CAB(width, slope))
        self.concat = conv(2 * width, width + extra, bias=False)
        self.image = conv(width + extra, 1, bias=False)

    def forward(self, v: Tensor, b: Tensor) -> Tensor:
        return self.image(self.concat(torch.cat([self.shallow(v), b], dim=1))) + v


class DGUNet(Network):
    """Images (N×1×H×W in [0,1]) → measured and reconstructed: the K stage images, last stage first.
    `measure` and `reconstruct` are the halves. The stages between the first and the last share one
    set of weights.

    H and W must be multiples of 32, else ValueError. `cs_ratio` percent are measured,
    m = ⌈1024·ratio/100⌉. `width` C and `width_step` s make the U-Net's widths C + s·i, `last_extra`
    widens the last stage, `stages` is K."""

    task, channels = TASK, 1
    multiple_of, min_long_side, padding = BLOCK, BLOCK, "zeros"
    separate_stages = False

    def __init__(
        self,
        cs_ratio: int = 25,
        width: int = 32,
        width_step: int = 16,
        last_extra: int = 16,
        stages: int = 7,
    ):
        sizes = {"width": width, "width_step": width_step, "last_extra": last_extra}
        super().__init__(cs_ratio=cs_ratio, **sizes, stages=stages)
        widths = [width + width_step * i for i in range(4)]
        distinct = stages if self.separate_stages else min(stages, 3)
        slope = PReLU()
        self.A = Measurement(-(-(BLOCK**2) * cs_ratio // 100))
        self.fgdm = nn.ModuleList(FGDM() for _ in range(distinct))
        self.ipmm = nn.ModuleList([IPMM(widths, slope, first=True)])
        self.ipmm.extend(IPMM(widths, PReLU(), first=False) for _ in range(distinct - 2))
        self.last = LastIPMM(width, slope, last_extra)

    def measure(self, image: Tensor) -> Tensor:
        """Image, N×1×H×W in [0,1] → measurements y = Φ b of its blocks, N×m×H/32×W/32."""
        self.check_image(image)
        return self.A(image)

    def reconstruct(self, y: Tensor) -> list[Tensor]:
        """Measurements, N×m×H/32×W/32 → the stage images, N×1×H×W, last stage first."""
        m = self.A.Phi.shape[0]
        if y.ndim != 4 or y.shape[1] != m or not y.numel() or not y.is_floating_point():
            raise ValueError(
                f"{TASK} {type(self).__name__} at ratio {self.sizes['cs_ratio']} reconstructs "
                f"measurements N×{m}×H/32×W/32, not {'×'.join(map(str, y.shape))} {y.dtype}"
            )
        start = self.A.adjoint(y)
        x, features, images = start, [], []
        for k in range(self.sizes["stages"] - 1):
            i = min(k, len(self.ipmm) - 1)  # DGUNet stays at its second stage's modules
            v = self.fgdm[i](x, start, self.A)
            x, features = self.run_stage(k, self.ipmm[i], v, features)
            images.append(x)
        v = self.fgdm[-1](x, start, self.A)
        features = features[-1:]  # the last stage takes SAM's alone
        images.append(self.last(v, features.pop()))
        return images[::-1]

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.reconstruct(self.measure(image))


class DGUNet_plus(DGUNet):
    """DGUNet with modules of its own for every stage."""

    separate_stages = True
