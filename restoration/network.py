"""What every DGUNet is, whatever its task: a module that knows its sizes and checks its input."""

from torch import Tensor, nn


class Network(nn.Module):
    """Base class of the networks.

    A subclass sets `task`, `multiple` (of which height and width must be multiples), `least` (what
    at least one of them must reach) and `channels` (of an image), and passes its constructor's
    arguments on as sizes.

    Raises:
        ValueError: a size that makes no network.
    """

    task: str
    channels: int
    multiple: int
    least: int

    def __init__(self, **sizes: int):
        super().__init__()
        rules = {
            "width": (lambda n: n >= 4 and n % 4 == 0, "a positive multiple of 4"),
            "width_step": (lambda n: n >= 0 and n % 2 == 0, "even and not negative"),
            "last_extra": (lambda n: n >= 0, "not negative"),
            "stages": (lambda n: n >= 2, "at least 2"),
        }
        for name, value in sizes.items():
            holds, expected = rules.get(name, (lambda n: True, ""))
            if isinstance(value, bool) or not isinstance(value, int) or not holds(value):
                raise ValueError(f"{type(self).__name__}: {name} is {value!r}, must be {expected}")
        self.sizes = sizes

    @property
    def config(self) -> dict:
        """What the network is, in plain types: {"task", "model", "sizes"}. With it
        `restoration.tasks.build_model(**config)` makes the same network."""
        return {"task": self.task, "model": type(self).__name__, "sizes": dict(self.sizes)}

    def check_image(self, image: Tensor) -> None:
        """Raise a ValueError that says what is expected, unless the network takes this batch."""
        name = f"{self.task} {type(self).__name__}"
        expected = f"{name} takes a floating-point tensor N×{self.channels}×H×W"
        if not image.is_floating_point():
            raise ValueError(f"{expected} with values in [0,1], not {image.dtype}")
        shape = "×".join(map(str, image.shape))
        if image.ndim != 4 or image.shape[1] != self.channels or not image.shape[0]:
            raise ValueError(f"{expected}, not {shape}")
        height, width = image.shape[2:]
        short = max(height, width) < self.least
        if height % self.multiple or width % self.multiple or not height or not width or short:
            least = f", at least one of them {self.least}" if self.least > self.multiple else ""
            raise ValueError(
                f"{name} takes heights and widths that are multiples of {self.multiple}{least}, "
                f"not {height}×{width}; restoration.images.pad_to_multiple pads"
            )

    def zero_image_convolutions(self) -> None:
        """Zero the convolutions that emit the stage images, so that every stage begins as its
        gradient step and training starts from there."""
        for ipmm in self.ipmm:
            nn.init.zeros_(ipmm.sam.image.weight)
        nn.init.zeros_(self.last.image.weight)
