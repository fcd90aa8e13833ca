"""DGUNet and DGUNet_plus for compressive sensing: one channel, the degradation is the measurement.

Mou, Wang, Zhang, "Deep Generalized Unfolding Networks for Image Restoration", CVPR 2022.

Each 32×32 block b of the image is measured as  y = Φ b,  Φ: m×1024, learned. Reconstruction solves
min_x ½‖Φ x − y‖² + λ J(x)  by proximal gradient descent from  x = Φᵀy,

    v = x − ρ Φᵀ(Φ x − y)      FGDM, the flexible gradient descent module,
    x = prox(v)                IPMM, the informative proximal mapping module (a small U-Net),

unfolded into K = 7 stages. Φ acts block by block; everything else sees the whole image, and so
removes the edges between blocks. From each U-Net to the next stage's runs the inter-stage feature
fusion, ISFF. DGUNet repeats one stage between the first and the last; DGUNet_plus gives each
its own weights.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration.network import Network

TASK = "Compressive_Sensing"
BLOCK = 32
RATIOS = (1, 4, 10, 25, 30, 40, 50)  # percent


def conv(in_width: int, out_width: int, kernel: int = 3, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(in_width, out_width, kernel, padding=kernel // 2, bias=bias)


class Measurement(nn.Module):
    """Φ and Φᵀ, block by block, as strided convolutions.  N×1×H×W ↔ N×m×H/32×W/32."""

    def __init__(self, measurements: int):
        super().__init__()
        self.Phi = nn.Parameter(nn.init.xavier_normal_(torch.empty(measurements, BLOCK**2)))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.Phi.view(-1, 1, BLOCK, BLOCK), stride=BLOCK)

    def adjoint(self, y: Tensor) -> Tensor:
        return F.conv_transpose2d(y, self.Phi.view(-1, 1, BLOCK, BLOCK), stride=BLOCK)


class FGDM(nn.Module):
    """The gradient step  v = x − ρ Φᵀ(Φ x − y).  N×1×H×W → N×1×H×W."""

    def __init__(self):
        super().__init__()
        self.step_size = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor, y: Tensor, A: Measurement) -> Tensor:
        return x - self.step_size * A.adjoint(A(x) - y)


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
    """Inter-stage feature fusion at one scale:  h + conv(e) + conv(d)  with the previous stage's
    encoder features e (N×out×H×W) and decoder features d (N×in×H×W).  N×out×H×W → N×out×H×W."""

    def __init__(self, in_width: int, out_width: int):
        super().__init__()
        self.from_encoder = conv(out_width, out_width)
        self.from_decoder = conv(in_width, out_width)

    def forward(self, h: Tensor, e: Tensor, d: Tensor) -> Tensor:
        return h + self.from_encoder(e) + self.from_decoder(d)


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
    """The stage's image  x = conv(d) + v  (N×1×H×W) and, attended by it, its features
    conv(d)·σ(conv(x)) + d  (N×C×H×W)."""

    def __init__(self, width: int):
        super().__init__()
        self.features = conv(width, width, 1, bias=False)
        self.image = conv(width, 1, 1, bias=False)
        self.attention = conv(1, width, 1, bias=False)

    def forward(self, d: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        image = self.image(d) + v
        return image, self.features(d) * torch.sigmoid(self.attention(image)) + d


def shallow_features(width: int, slope: nn.PReLU) -> nn.Sequential:
    return nn.Sequential(conv(1, width, bias=False), CAB(width, slope))


class Stage(nn.Module):
    """FGDM, then IPMM:  x (N×1×H×W), y and the previous features → new x, new features."""

    def __init__(self, widths: list[int], slope: nn.PReLU, first: bool):
        super().__init__()
        self.gradient = FGDM()
        self.shallow = shallow_features(widths[0], slope)
        self.merge = None if first else conv(2 * widths[0], widths[0], bias=False)
        self.encoder = Encoder(widths, fuse=not first)
        self.decoder = Decoder(widths)
        self.sam = SAM(widths[0])

    def forward(
        self, x: Tensor, y: Tensor, A: Measurement, previous: Features | None
    ) -> tuple[Tensor, Features]:
        v = self.gradient(x, y, A)
        z = self.shallow(v)
        if previous is not None:
            z = self.merge(torch.cat([z, previous.sam], dim=1))
        encoded, bottom = self.encoder(z, previous)
        decoded = self.decoder(encoded, bottom)
        image, features = self.sam(decoded[0], v)
        return image, Features(encoded, decoded, features)


class LastStage(nn.Module):
    """FGDM, then convolutions instead of a U-Net, added to v.  → N×1×H×W."""

    def __init__(self, width: int, slope: nn.PReLU, extra: int):
        super().__init__()
        self.gradient = FGDM()
        self.shallow = shallow_features(width, slope)
        self.concat = conv(2 * width, width + extra, bias=False)
        self.image = conv(width + extra, 1, bias=False)

    def forward(self, x: Tensor, y: Tensor, A: Measurement, previous: Features) -> Tensor:
        v = self.gradient(x, y, A)
        return self.image(self.concat(torch.cat([self.shallow(v), previous.sam], dim=1))) + v


class DGUNet(Network):
    """The network:  image (N×1×H×W in [0,1]) → measured and reconstructed, the K stage images, last
    stage first. `measure` and `reconstruct` are its halves.

    H and W must be multiples of 32, else ValueError. `cs_ratio` percent are measured,
    m = ⌈1024·ratio/100⌉. `width` C and `width_step` s make the U-Net's widths C + s·i, `last_extra`
    widens the last stage, `stages` is K.
    """

    task, channels, multiple, least = TASK, 1, BLOCK, BLOCK
    separate_stages = False

    def __init__(
        self,
        cs_ratio: int = 25,
        width: int = 32,
        width_step: int = 16,
        last_extra: int = 16,
        stages: int = 7,
    ):
        if cs_ratio not in RATIOS:
            raise ValueError(f"cs_ratio is {cs_ratio!r}, must be one of {RATIOS}")
        super().__init__(
            cs_ratio=cs_ratio,
            width=width,
            width_step=width_step,
            last_extra=last_extra,
            stages=stages,
        )
        widths = [width + width_step * scale for scale in range(4)]
        slope = nn.PReLU()
        self.A = Measurement(-(-(BLOCK**2) * cs_ratio // 100))
        self.first = Stage(widths, slope, first=True)
        self.middle = nn.ModuleList(
            Stage(widths, nn.PReLU(), first=False)
            for _ in range(stages - 2 if self.separate_stages else min(stages - 2, 1))
        )
        self.last = LastStage(width, slope, last_extra)

    def measure(self, image: Tensor) -> Tensor:
        """Image, N×1×H×W in [0,1] → measurements y = Φ b of its blocks, N×m×H/32×W/32."""
        self.check_image(image)
        return self.A(image)

    def reconstruct(self, y: Tensor) -> list[Tensor]:
        """Measurements, N×m×H/32×W/32 → the stage images, N×1×H×W, last stage first."""
        m = self.A.Phi.shape[0]
        if y.ndim != 4 or y.shape[1] != m or not y.numel() or not y.is_floating_point():
            raise ValueError(
                f"{TASK} {type(self).__name__} at ratio {self.sizes['cs_ratio']} takes "
                f"measurements N×{m}×H/32×W/32, floating-point, not {tuple(y.shape)} {y.dtype}"
            )
        x, features = self.first(self.A.adjoint(y), y, self.A, None)
        images = [x]
        for k in range(self.sizes["stages"] - 2):
            x, features = self.middle[k % len(self.middle)](x, y, self.A, features)
            images.append(x)
        images.append(self.last(x, y, self.A, features))
        return images[::-1]

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.reconstruct(self.measure(image))


class DGUNet_plus(DGUNet):
    """DGUNet with a separate set of weights for every stage."""

    separate_stages = True
