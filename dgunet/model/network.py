"""What every DGUNet is, whatever its task: a module that knows its sizes and checks its input."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SIZES = {  # name → rule and its words; the limits keep a damaged file from asking for all memory
    "width": (lambda n: 4 <= n <= 4096 and n % 4 == 0, "a multiple of 4, from 4 to 4096"),
    "width_step": (lambda n: 0 <= n <= 4096 and n % 2 == 0, "even, from 0 to 4096"),
    "last_extra": (lambda n: 0 <= n <= 4096, "from 0 to 4096"),
    "stages": (lambda n: 2 <= n <= 100, "from 2 to 100"),
    "cs_ratio": (lambda n: 1 <= n <= 100, "a percentage"),
}


class Network(nn.Module):
    """Base class of the networks.

    A subclass sets `task`, `channels` (of an image), `multiple_of` (of which height and width must
    be multiples), `min_long_side` (what the longer of them must reach) and `padding` (what other
    images are filled up with at the bottom and right: "reflect", their reflection, or "zeros"), and
    passes its constructor's arguments on as sizes. Raises a ValueError for one that makes no
    network."""

    task: str
    channels: int
    multiple_of: int
    min_long_side: int
    padding: str
    optimized = False  # a copy by `dgunet.inference.optimize`: for inference, not to be saved
    checkpoint_stages = False  # in training: less memory for more time, see `run_stage`

    def __init__(self, **sizes: int):
        super().__init__()
        for name, value in sizes.items():
            holds, expected = SIZES[name]
            if isinstance(value, bool) or not isinstance(value, int) or not holds(value):
                raise ValueError(
                    f"{type(self).__name__}: {name} is {value!r}, must be an integer, {expected}"
                )
        self.sizes = sizes

    @property
    def config(self) -> dict:
        """What the network is, in plain types: {"task", "model", "sizes"}. With it
        `dgunet.model.registry.build_model(**config)` makes the same network."""
        return {"task": self.task, "model": type(self).__name__, "sizes": dict(self.sizes)}

    def run_stage(
        self, k: int, module: nn.Module, v: Tensor, features: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return what the module of stage k, counted from 0, makes of v and the features, which it
        takes out of their list.

        With `checkpoint_stages`, all that is kept of it for the backward pass is its inputs; the
        rest is computed again there (Chen et al., "Training Deep Nets with Sublinear Memory Cost",
        2016). Not so in the last stage that has a U-Net: the backward pass begins with it."""
        if self.checkpoint_stages and torch.is_grad_enabled() and k < self.sizes["stages"] - 2:

            def run(v: Tensor, *features: Tensor) -> tuple[Tensor, list[Tensor]]:
                return module(v, list(features))  # a list of its own for each of the two runs

            return checkpoint(run, v, *features, use_reentrant=False, preserve_rng_state=False)
        return module(v, features)

    def check_image(self, image: Tensor) -> None:
        """Raise a ValueError that says what is expected, unless the network takes this batch."""
        name = f"{self.task} {type(self).__name__}"
        expected = f"{name} takes a floating-point tensor N×{self.channels}×H×W"
        if not isinstance(image, Tensor) or not image.is_floating_point():
            found = getattr(image, "dtype", type(image).__name__)
            raise ValueError(f"{expected} with values in [0,1], not {found}")
        shape = "×".join(map(str, image.shape))
        if image.ndim != 4 or image.shape[1] != self.channels or not image.shape[0]:
            raise ValueError(f"{expected}, not {shape or 'a scalar'}")
        height, width = image.shape[2:]
        short = max(height, width) < self.min_long_side or not min(height, width)
        if height % self.multiple_of or width % self.multiple_of or short:
            long = f", at least one of them {self.min_long_side}"
            raise ValueError(
                f"{name} takes heights and widths that are multiples of {self.multiple_of}"
                f"{long if self.min_long_side > self.multiple_of else ''}, not {height}×{width}; "
                "dgunet.Restorer pads"
            )

    def zero_image_convolutions(self) -> None:
        """Zero the convolutions whose output is added to an image, so that training starts where no
        stage changes it but by a gradient step: all stage images are the degraded image, or in
        compressive sensing what gradient descent gives."""
        for fgdm in self.fgdm:
            for operator in fgdm.children():
                nn.init.zeros_(operator[-1].weight)
                nn.init.zeros_(operator[-1].bias)
        for ipmm in self.ipmm:
            nn.init.zeros_(ipmm.sam.image.weight)
        nn.init.zeros_(self.last.image.weight)
