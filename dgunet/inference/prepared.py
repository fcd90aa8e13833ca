"""A network made ready for inference: the same pixels, in less time and memory.

`prepare` puts the modules of this file in the place of the network's own. They hold the same
weights and compute the same, but write over what is no longer needed, let go of features as soon as
they have been used, keep to one memory layout and, in half precision, cast images only: tensors of
three channels. Which of this buys how much is in benchmarks/README.md.
"""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgunet.base.errors import InputError
from dgunet.model.network import Network

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")


def prepare(
    network: Network, *, precision: str = "float32", compile: bool | str = False
) -> Network:
    """Return a copy of a network for inference only.

    It takes and returns what the network does. In float32 the images differ by rounding, below
    1e-5; bf16 and fp16 compute the convolutions in half precision, but the images, the subspace
    projection and compressive sensing's Φ in float32.

    Args:
        network: of any task, in float32, on any device; left as it is.
        precision: float32, bf16 or fp16.
        compile: False, True or a mode of torch.compile ("reduce-overhead" replays CUDA graphs: for
            tiles of one size). Each new size of image is compiled anew, the first time for minutes;
            later processes find it in the cache, $TORCHINDUCTOR_CACHE_DIR or ~/.cache/dgunet.

    Raises:
        InputError: a precision or mode that there is none of, or no C++ compiler to compile with.
        ValueError: the network has been prepared before.

    >>> from dgunet.model.registry import build_model
    >>> network = build_model("Deraining", "DGUNet", {"width": 8, "width_step": 4, "stages": 3})
    >>> image = torch.rand(1, 3, 16, 24)
    >>> with torch.inference_mode():
    ...     plain, fast = network.eval()(image)[0], prepare(network)(image)[0]
    >>> (plain - fast).abs().max().item() < 1e-5
    True
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    if compile not in (False, True, *COMPILE_MODES):
        raise InputError(f"compile is {compile!r}; expected one of {', '.join(COMPILE_MODES)}")
    if network.prepared:
        raise ValueError("the network is prepared already; expected the one it was made of")
    prepared = copy.deepcopy(network).eval().requires_grad_(False)
    prepared.prepared = True
    dtype = PRECISIONS[precision]
    for fgdm in prepared.fgdm:
        for name, operator in fgdm.named_children():
            setattr(fgdm, name, _Operator(operator, dtype))
    for index, ipmm in enumerate(prepared.ipmm):
        prepared.ipmm[index] = _IPMM(ipmm, dtype)
    prepared.last = _Last(prepared.last, dtype)
    for parameter in prepared.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    prepared.register_forward_pre_hook(_to_channels_last)
    if compile:
        if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))):
            raise InputError("torch.compile needs a C++ compiler, such as g++; found none")
        folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dgunet"
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_writable(folder)))
        prepared.compile(mode="default" if compile is True else compile, dynamic=False)
    return prepared


def _to_channels_last(_: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
    (image,) = arguments
    if isinstance(image, Tensor) and image.ndim == 4:
        image = image.contiguous(memory_format=torch.channels_last)
    return (image,)


def _for_convolutions(image: Tensor, dtype: torch.dtype) -> Tensor:
    """Return an image in that precision, with the strides of channels_last. For one channel both
    layouts are the same memory, and a convolution takes it for the other and answers in that."""
    image = image.to(dtype)
    if image.shape[1] > 1 or not image.is_contiguous():
        return image
    height, width = image.shape[2:]
    return image.as_strided(image.shape, (height * width, 1, width, 1))


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    except OSError:
        return Path(tempfile.gettempdir()) / "dgunet"


class _Operator(nn.Module):
    """A or Aᵀ. The images on both sides stay in their own precision."""

    def __init__(self, operator: nn.Sequential, dtype: torch.dtype):
        super().__init__()
        self.first, slope, self.last = operator.to(dtype)
        self.slope, self.dtype = _slope(slope), dtype

    def forward(self, z: Tensor) -> Tensor:
        h = F.leaky_relu_(self.first(z.to(self.dtype)), self.slope)
        return z + self.last(h)


class _CAB(nn.Module):
    def __init__(self, cab: nn.Module):
        super().__init__()
        self.conv1, self.conv2, self.squeeze, self.excite = (
            cab.conv1,
            cab.conv2,
            cab.squeeze,
            cab.excite,
        )
        self.slope = _slope(cab.slope)

    def forward(self, z: Tensor) -> Tensor:
        g = self.conv2(F.leaky_relu_(self.conv1(z), self.slope))
        a = self.excite(F.relu_(self.squeeze(g.mean((2, 3), keepdim=True)))).sigmoid_()
        return torch.addcmul(z, g, a)


class _InstanceNorm(nn.InstanceNorm2d):
    """The same normalisation, of a part of the channels, where it lies."""

    def forward(self, z: Tensor) -> Tensor:
        h = z.float() if z.dtype != torch.float64 else z
        mean = h.mean((2, 3), keepdim=True)
        # Centred first: squares of what has a large mean would lose its variance to rounding.
        h = h - mean if h is z else h.sub_(mean)
        scale = (h.square().mean((2, 3), keepdim=True) + self.eps).rsqrt_()
        return h.mul_(scale * self.weight[:, None, None]).add_(self.bias[:, None, None])


class _ConvBlock(nn.Module):
    def __init__(self, block: nn.Module):
        super().__init__()
        self.conv1, self.conv2, self.identity = block.conv1, block.conv2, block.identity
        self.norm = None
        if block.norm is not None:
            norm = _InstanceNorm(block.norm.num_features, block.norm.eps, affine=True)
            norm.weight, norm.bias = block.norm.weight, block.norm.bias
            self.norm = norm.float()

    def forward(self, z: Tensor) -> Tensor:
        h = self.conv1(z)
        if self.norm is not None:
            normalised = slice(self.norm.num_features)
            h[:, normalised] = self.norm(h[:, normalised])
        h = F.leaky_relu_(self.conv2(F.leaky_relu_(h, 0.2)), 0.2)
        return h.add_(self.identity(z))


class _ISFF(nn.Module):
    """In two steps: `join` makes of the previous stage's features all that is needed of them."""

    def __init__(self, fusion: nn.Module):
        super().__init__()
        self.from_encoder, self.from_decoder = fusion.from_encoder, fusion.from_decoder
        self.gate, self.shift = getattr(fusion, "gate", None), getattr(fusion, "shift", None)

    def join(self, e: Tensor, d: Tensor) -> Tensor:
        u = self.from_encoder(e)
        del e
        u.add_(self.from_decoder(d))
        return u if self.gate is None else F.leaky_relu_(u, 0.1)

    def forward(self, h: Tensor, u: Tensor) -> Tensor:
        if self.gate is None:
            return h.add_(u)
        h.addcmul_(h, self.gate(u).sigmoid_())
        return h.add_(self.shift(u))


class _Halves(nn.Module):
    """A convolution of the concatenation of two tensors, without making it."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        width = conv.in_channels // 2
        self.first, self.second = copy.deepcopy(conv), copy.deepcopy(conv)
        self.first.weight.data = conv.weight[:, :width].clone()
        self.second.weight.data = conv.weight[:, width:].clone()
        self.second.bias = None

    def forward(self, z: Tensor, b: Tensor) -> Tensor:
        return self.first(z).add_(self.second(b))


class _Merge(nn.Module):
    def __init__(self, merge: nn.Module):
        super().__init__()
        self.basis, self.fuse = _Halves(merge.basis), _Halves(merge.fuse)
        self.project = merge.project

    def forward(self, z: Tensor, b: Tensor) -> Tensor:
        return self.fuse(z, self.project(b, self.basis(z, b))).add_(z)


class _Features:
    """What a stage hands to the next, to be taken out: what is held here is held in memory."""

    def __init__(self, encoder: list[Tensor], decoder: list[Tensor], sam: Tensor):
        self.encoder, self.decoder, self.sam = encoder, decoder, sam


class _IPMM(nn.Module):
    def __init__(self, ipmm: nn.Module, dtype: torch.dtype):
        super().__init__()
        ipmm = ipmm.to(dtype)
        self.dtype = dtype
        self.shallow = nn.Sequential(ipmm.shallow[0], _CAB(ipmm.shallow[1]))
        self.merge = _merge(ipmm.merge)
        self.encoder = nn.ModuleList(map(_ConvBlock, ipmm.encoder))
        self.fusion = nn.ModuleList(map(_ISFF, ipmm.fusion))
        self.down, self.bottom = ipmm.down, _ConvBlock(ipmm.bottom)
        self.up, self.skip = ipmm.up, ipmm.skip
        self.decoder = nn.ModuleList(map(_ConvBlock, ipmm.decoder))
        self.sam = ipmm.sam
        self.attention = getattr(ipmm.sam, "attention", None)

    def forward(self, v: Tensor, previous: _Features | None) -> tuple[Tensor, _Features]:
        joined: list[Tensor] = []
        if previous is not None:
            for fusion in self.fusion:
                joined.append(fusion.join(previous.encoder.pop(0), previous.decoder.pop(0)))
        z = self.shallow(_for_convolutions(v, self.dtype))
        if previous is not None:
            z = self.merge(z, previous.sam)
            previous.sam = None
        encoded, decoded = [], []
        for scale in range(3):
            z = self.encoder[scale](z)
            if joined:
                z = self.fusion[scale](z, joined.pop(0))
            encoded.append(z)
            z = self.down[scale](z)
        z = self.bottom(z)
        for scale in (2, 1, 0):
            z = torch.cat([self.up[scale](z), self.skip[scale](encoded[scale])], dim=1)
            z = self.decoder[scale](z)
            decoded.insert(0, z)
        x = self.sam.image(z) + v
        features = self.sam.features(z)
        if self.attention is not None:
            features.mul_(self.attention(_for_convolutions(x, self.dtype)).sigmoid_())
        return x, _Features(encoded, decoded, features.add_(z))


class _Last(nn.Module):
    """The last stage: adds to y (image restoration) or to v (compressive sensing)."""

    def __init__(self, last: nn.Module, dtype: torch.dtype):
        super().__init__()
        last = last.to(dtype)
        self.dtype = dtype
        self.shallow = nn.Sequential(last.shallow[0], _CAB(last.shallow[1]))
        self.merge = _merge(getattr(last, "merge", None) or last.concat)
        self.image = last.image

    def forward(self, v: Tensor, *y_and_previous) -> Tensor:
        *y, previous = y_and_previous
        previous.encoder.clear()
        previous.decoder.clear()
        z = self.merge(self.shallow(_for_convolutions(v, self.dtype)), previous.sam)
        return self.image(z) + (y[0] if y else v)


def _merge(module: nn.Module | None) -> nn.Module | None:
    """Return how the previous stage's features join: a subspace projection or a convolution."""
    if module is None:
        return None
    return _Halves(module) if isinstance(module, nn.Conv2d) else _Merge(module)


def _slope(prelu: nn.PReLU) -> float:
    return float(prelu.weight.detach())
