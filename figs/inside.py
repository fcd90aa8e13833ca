"""See inside the networks: what each stage does, how the score rises, and the learned Φ.

    python figs/inside.py

takes the weights that come with the project and photographs inside scikit-image, degraded with a
fixed seed, and writes beside this file

    inside_<task>.jpg  a photograph stage by stage: the image xₖ, how it differs from xₖ₋₁, and the
                       residual Aₖ(xₖ₋₁) − y that the stage's gradient step starts from
    inside_psnr.png    the PSNR after every stage, of five photographs and their mean
    inside_phi.png     the first rows of Φ; with --photos BSD400, the photographs that trained it,
                       beside their blocks' principal components, where training started

and prints a table of what is in the labels. What is measured, for a stage that turns x into
v = x − ρ Aᵀ(A x − y) and v into the next image:

    ρ               the learned step size
    adjoint error   |⟨A x, w⟩ − ⟨x, Aᵀ w⟩| / (‖A x‖ ‖w‖), the mean over 8 seeded draws of white
                    Gaussian noise w of σ = 0.1, about a residual's size; and, in the table, with
                    the residual A x − y for w
    cosine          between Aᵀ(A x − y), which the stage subtracts, and the gradient of
                    ½‖A x − y‖² at x, which it stands for

A and Aᵀ of image restoration are z + conv(PReLU(conv(z))) with biases of their own. They are not
linear, so an error above 0 and a cosine below 1 are to be expected, and the error depends on the
size of w: of a small w, Aᵀ w is mostly Aᵀ 0. A small error proves nothing: noise is nearly
orthogonal to any picture, so even operators that have nothing to do with each other come out at
√(2/πn) with n values, 0.002 here. The cosine tells them apart. In compressive sensing A and Aᵀ are
Φ and Φᵀ: 0 and 1, but for rounding.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgunet.base.errors import InputError, command
from dgunet.base.files import write_bytes
from dgunet.images.files import (
    list_images,
    pair_by_name,
    read_gray,
    read_rgb,
    to_tensor,
    to_uint8,
)
from dgunet.images.psnr import psnr
from dgunet.model.checkpoint import load_model
from dgunet.model.network import Network
from dgunet.model.pretrained import (
    DEFAULT_WEIGHTS,
    default_weights,
    degradation_of,
    find_weights,
    read_record,
    trained_for,
)
from dgunet.tools.synthesize import bundled_photos, synthesize

FOLDER = Path(__file__).resolve().parent
SENSING = "Compressive_Sensing"
SHOWN = {  # task → the photograph in its figure, and the top left corner of the detail shown
    "Deblurring": ("astronaut", 64, 30),
    "Deraining": ("chelsea", 50, 20),
    "Denoising": ("coffee", 70, 32),
    SENSING: ("motorcycle_left", 80, 64),
}
PHOTOS = ("astronaut", "chelsea", "coffee", "motorcycle_left", "rocket")
SIDE = 256  # pixels of a photograph's middle: whole blocks of every network
DETAIL_WIDTH, DETAIL_HEIGHT, LOW_DETAIL_HEIGHT = 192, 120, 88  # low where stages are many
DRAWS, SIGMA = 8, 0.1
DPI, QUALITIES, MOST_BYTES = 120, range(90, 60, -4), 400_000
RATIOS = (25, 10)  # of the Φ shown
GRID = 8  # rows and columns of a mosaic
COLOURS = "RdBu_r"  # of what has a sign
GAP = 2  # pixels between its tiles

Operator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Example:
    """A photograph on its way: y (a degraded image or measurements, a batch of one), the images
    x₀ (y, or Φᵀy), x₁, …, C×H×W, not clamped, and the target, C×H×W."""

    name: str
    y: Tensor
    images: list[Tensor]
    target: Tensor

    def scores(self) -> list[float]:
        """Return the PSNR in dB, of 8-bit pixels, of x₀ and every xₖ."""
        return [psnr(to_uint8(image), to_uint8(self.target), 255) for image in self.images]


@dataclass(frozen=True)
class Step:
    """A stage's gradient step.

    Attributes:
        residual: Aₖ(xₖ₋₁) − y, C×H×W; in compressive sensing Φᵀ(Φ xₖ₋₁ − y), to be a picture.
        size: ρₖ.
        error, error_on_residual: the adjoint error with noise and with the residual.
        cosine: between Aᵀ(A x − y) and the gradient.
    """

    residual: Tensor
    size: float
    error: float
    error_on_residual: float
    cosine: float


@torch.no_grad()
def adjoint_error(A: Operator, A_adjoint: Operator, u: Tensor, w: Tensor) -> float:
    """Return |⟨A u, w⟩ − ⟨u, Aᵀ w⟩| / (‖A u‖ ‖w‖): 0 if Aᵀ is A's adjoint. NaN where A u or w is 0.

    >>> adjoint_error(lambda u: 3 * u, lambda w: 2 * w, torch.ones(4), torch.ones(4))
    0.3333333333333333
    """
    Au, adjoint = A(u).double(), A_adjoint(w).double()
    u, w = u.double(), w.double()
    return float(((Au * w).sum() - (u * adjoint).sum()).abs() / (Au.norm() * w.norm()))


def gradient_cosine(A: Operator, A_adjoint: Operator, x: Tensor, y: Tensor) -> float:
    """Return the cosine between Aᵀ(A x − y) and the gradient of ½‖A x − y‖² at x, which is
    Jᵀ(A x − y) with A's Jacobian J: 1 if Aᵀ is the adjoint of a linear A. NaN where one is 0.

    >>> gradient_cosine(lambda x: 3 * x, lambda r: -2 * r, torch.ones(4), torch.zeros(4))
    -1.0
    """
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        residual = A(x) - y
        (gradient,) = torch.autograd.grad(residual.square().sum() / 2, x)
    with torch.no_grad():
        step, gradient = A_adjoint(residual).double(), gradient.double()
    return float((step * gradient).sum() / (step.norm() * gradient.norm()))


@torch.no_grad()
def stage_images(network: Network, y: Tensor) -> list[Tensor]:
    """Return x₀ and the images of all stages, C×H×W.

    Args:
        network: of any task, model and number of stages.
        y: what it restores: a degraded image, 1×3×H×W in [0,1], H and W multiples of 8; in
            compressive sensing measurements, 1×m×H/32×W/32.
    """
    if network.task == SENSING:
        images = [network.A.adjoint(y), *network.reconstruct(y)[::-1]]
    else:
        images = [y, *network(y)[::-1]]
    return [image[0] for image in images]


@torch.no_grad()
def gradient_steps(
    network: Network, y: Tensor, images: Sequence[Tensor], seed: int = 0
) -> list[Step]:
    """Return the gradient step of every stage.

    Args:
        network, y: as of `stage_images`.
        images: what that returned.
        seed: of the noise that the operators are tried on.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = [SIGMA * torch.randn(y.shape, generator=generator) for _ in range(DRAWS)]
    sensing = network.task == SENSING
    steps = []
    for k, x in enumerate(images[:-1]):
        last = k == len(images) - 2
        fgdm = network.fgdm[-1 if last else min(k, len(network.fgdm) - 2)]
        A, A_adjoint = (network.A, network.A.adjoint) if sensing else (fgdm.A, fgdm.A_adjoint)
        x = x[None]
        residual = A(x) - y
        step = Step(
            residual=(A_adjoint(residual) if sensing else residual)[0],
            size=float(fgdm.step_size),
            error=float(np.mean([adjoint_error(A, A_adjoint, x, w) for w in noise])),
            error_on_residual=adjoint_error(A, A_adjoint, x, residual),
            cosine=gradient_cosine(A, A_adjoint, x, y),
        )
        steps.append(step)
    return steps


def restore_photos(network: Network, preset: str, photos: Sequence[Path]) -> list[Example]:
    """Return the photographs' middles, degraded by a preset of `dgunet.data.degradations` (in
    compressive sensing: measured) and restored."""
    if network.task == SENSING:
        targets = {photo.stem: _middle(to_tensor(read_gray(photo))) for photo in photos}
        with torch.no_grad():
            inputs = [network.measure(target[None]) for target in targets.values()]
    else:
        with tempfile.TemporaryDirectory() as folder:
            synthesize(preset, folder, photos, max_side=SIDE, jobs=1)
            pairs = pair_by_name(Path(folder) / "input", Path(folder) / "target")
            targets = {target.stem: to_tensor(read_rgb(target)) for _, target in pairs}
            inputs = [to_tensor(read_rgb(degraded))[None] for degraded, _ in pairs]
    return [
        Example(name, y, stage_images(network, y), target)
        for (name, target), y in zip(targets.items(), inputs, strict=True)
    ]


def _middle(image: Tensor) -> Tensor:
    top, left = ((side - SIDE) // 2 for side in image.shape[-2:])
    return image[:, top : top + SIDE, left : left + SIDE]


def stages_figure(title: str, example: Example, steps: Sequence[Step], corner: tuple[int, int]):
    """Return a matplotlib figure: a row for x₀ and for every stage, with its image, its change and
    its residual, of which a detail is shown, whose top left corner is given. Changes and residuals
    are the mean of the channels, each with a scale of its own, the 99.5th percentile of what is
    shown. The PSNR is of the whole image."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    rows = len(steps) + 1
    detail_height = DETAIL_HEIGHT if rows < 6 else LOW_DETAIL_HEIGHT
    height = 3.15 * detail_height / DETAIL_WIDTH + 0.25
    figure = Figure(figsize=(11, rows * height + 0.75), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.02, hspace=0, wspace=0)
    figure.suptitle(title, fontsize=13, weight="bold")
    grid = figure.add_gridspec(rows + 1, 3, height_ratios=[*[25] * rows, 1])
    axes = np.array([[figure.add_subplot(grid[row, c]) for c in range(3)] for row in range(rows)])

    top, left = corner
    box = (..., slice(top, top + detail_height), slice(left, left + DETAIL_WIDTH))
    images, target = ([i[box] for i in group] for group in (example.images, [example.target]))
    scores, sensing = example.scores(), len(target[0]) == 1
    start = r"$x_0 = \Phi^T y$" if sensing else "$x_0 = y$"
    _label(axes[0, 0], "input")
    _show(axes[0, 0], images[0], f"{start}:  {scores[0]:.2f} dB")
    _show_signed(axes[0, 1], target[0] - images[0], r"target $-\ x_0$")
    _show(axes[0, 2], target[0], "target")
    for k, (line, step) in enumerate(zip(axes[1:], steps, strict=True), 1):
        error = f"{step.error:#.2g}" if step.error > 1e-7 else "< 1e-7"
        facts = f"ρ = {step.size:.2f}\nadjoint error {error}\ncosine {step.cosine:.2f}"
        _label(line[0], f"stage {k}", facts)
        _show(line[0], images[k], f"$x_{{{k}}}$:  {scores[k]:.2f} dB")
        _show_signed(line[1], images[k] - images[k - 1], f"$x_{{{k}}} - x_{{{k - 1}}}$")
        residual = f"A_{{{k}}}(x_{{{k - 1}}}) - y"
        if sensing:
            residual = rf"\Phi^T(\Phi x_{{{k - 1}}} - y)"
        _show_signed(line[2], step.residual[box], f"${residual}$")

    room = figure.add_subplot(grid[-1, 1:])
    room.set_axis_off()
    bar = figure.colorbar(
        ScalarMappable(Normalize(-1, 1), COLOURS),
        cax=room.inset_axes([0.25, 0, 0.5, 1]),
        orientation="horizontal",
        ticks=[-1, 0, 1],
    )
    bar.ax.set_xticklabels(["− scale", "0", "+ scale"], fontsize=10)
    bar.outline.set_visible(False)
    return figure


def _label(axis, name: str, facts: str = "") -> None:
    place = {"transform": axis.transAxes, "ha": "right", "va": "top"}
    axis.text(-0.04, 0.97, name, fontsize=12, weight="bold", **place)
    axis.annotate(
        facts,
        (-0.04, 0.97),
        xycoords="axes fraction",
        xytext=(0, -24),
        textcoords="offset points",
        fontsize=10,
        linespacing=1.5,
        ha="right",
        va="top",
    )


def _show(axis, image: Tensor, title: str) -> None:
    axis.imshow(to_uint8(image), "gray", vmin=0, vmax=255, interpolation="bicubic")
    axis.set_title(title, fontsize=10.5, pad=3)
    axis.set_axis_off()


def _show_signed(axis, image: Tensor, title: str) -> None:
    values = image.mean(0).numpy()
    scale = float(f"{np.percentile(abs(values), 99.5):.2g}") or 1.0
    axis.imshow(values, COLOURS, vmin=-scale, vmax=scale, interpolation="bicubic")
    axis.set_title(f"{title},  scale ±{scale:g}", fontsize=10.5, pad=3)
    axis.set_axis_off()


def psnr_figure(examples: Mapping[str, Sequence[Example]]):
    """Return a matplotlib figure: PSNR over the stages, a panel for each task; a thin line for each
    photograph, a thick one for the mean."""
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import MultipleLocator

    figure = Figure(figsize=(2.75 * len(examples) + 0.4, 3.2), layout="constrained")
    panels = figure.subplots(1, len(examples), sharey=True, squeeze=False)[0]
    for axis, (task, of_task) in zip(panels, examples.items(), strict=True):
        scores = np.array([example.scores() for example in of_task])
        stages, mean = np.arange(scores.shape[1]), scores.mean(axis=0)
        axis.plot(stages, scores.T, color="0.75", linewidth=1)
        axis.plot(stages, mean, color="C0", linewidth=2, marker="o", markersize=5)
        for k in (0, len(mean) - 1):
            place = {"xytext": (0, -16), "textcoords": "offset points", "ha": "center"}
            text = axis.annotate(f"{mean[k]:.2f}", (k, mean[k]), color="C0", fontsize=10, **place)
            text.set_path_effects([withStroke(linewidth=3, foreground="white")])
        axis.set_title(task.replace("_", " "), fontsize=11, weight="bold")
        axis.set_xticks(stages)
        axis.set_xlabel("stage (0: input)")
        axis.margins(x=0.13, y=0.1)
        axis.yaxis.set_major_locator(MultipleLocator(5))
        axis.grid(axis="y", color="0.92")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("PSNR (dB)")
    return figure


def mosaic(rows: np.ndarray, grid: int = GRID) -> np.ndarray:
    """Return the first rows of Φ (m×side²) as one picture of at most grid×grid tiles, line by line,
    with NaN between and after them.

    >>> mosaic(np.arange(8.0).reshape(2, 4), grid=2).shape
    (6, 6)
    """
    side = round(rows.shape[1] ** 0.5)
    pitch = side + GAP
    picture = np.full((grid * pitch - GAP, grid * pitch - GAP), np.nan)
    for index, row in enumerate(rows[: grid**2]):
        top, left = (pitch * place for place in divmod(index, grid))
        picture[top : top + side, left : left + side] = row.reshape(side, side)
    return picture


def phi_figure(panels: Mapping[str, np.ndarray]):
    """Return a matplotlib figure of mosaics, title → rows, all on one scale: grey is 0."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.9 * len(panels), 4.2), layout="constrained")
    colours = colormaps["gray"].with_extremes(bad="white")
    for axis, (title, rows) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        scale = 3 / rows.shape[1] ** 0.5  # three times the root mean square of a row of length 1
        axis.imshow(mosaic(rows), colours, vmin=-scale, vmax=scale, interpolation="none")
        axis.set_title(title, fontsize=11)
        axis.set_axis_off()
    return figure


def phi_panels(photos: Path | None = None) -> dict[str, np.ndarray]:
    """Return title → Φ for the ratios whose weights are there, and print in a line each how long
    its rows are. With the folder of the photographs that trained them, their principal components
    come first, and the lines say how far the rows shown are from those."""
    panels: dict[str, np.ndarray] = {}
    components = None
    for ratio in RATIOS:
        try:
            weights = find_weights(f"DGUNet_{ratio}")
        except InputError as error:
            print(f"left out: Φ of ratio {ratio} ({error})", flush=True)
            continue
        rows = load_model(weights, SENSING)[0].A.Phi.detach().numpy()
        lengths = np.linalg.norm(rows, axis=1)
        line = f"Φ of ratio {ratio} %: rows of length {lengths.min():.2f} to {lengths.max():.2f}"
        if photos:
            if components is None:
                components = starting_phi(photos, weights)
                panels["principal components"] = components
            shown = rows[: len(components)]
            cosines = (shown * components).sum(axis=1) / lengths[: len(shown)]
            line += f", those shown at {np.degrees(np.arccos(cosines.min())):.0f}° at most to"
            line += " the principal components"
        print(line, flush=True)
        panels[f"learned, ratio {ratio} %: the first of {len(rows)} rows"] = rows
    return panels


def starting_phi(photos: Path, weights: Path) -> np.ndarray:
    """Return the first rows of the Φ that a training of compressive sensing began with.

    Args:
        photos: the folder it was trained on.
        weights: what it made; the record beside them says which photographs were left out.

    Raises:
        InputError: there is no such record.
    """
    from dgunet.Compressive_Sensing.data import Photographs, principal_components, read_luma, split

    record = read_record(weights)
    if not record or "config" not in record:
        raise InputError(f"{weights.with_suffix('.json')}: is no record of how Φ was trained")
    training = record["config"]["TRAINING"]
    paths = split(list_images(photos, recursive=True), training["HOLD_OUT"], str(photos))[0]
    images, names = [read_luma(path) for path in paths], [path.name for path in paths]
    return principal_components(Photographs(images, names, training["TRAIN_PS"]), GRID**2).numpy()


def table(examples: Mapping[str, tuple[Example, Sequence[Step]]]) -> str:
    """Return what was measured as text, a line for each stage of each task's example."""
    head = f"{'':20}{'stage':>5}{'PSNR':>8}{'ρ':>8}{'change':>9}{'residual':>10}"
    lines = [head + f"{'adjoint error: noise':>23}{'residual':>10}{'cosine':>8}"]
    for task, (example, steps) in examples.items():
        scores, images = example.scores(), example.images
        lines.append(f"{task:20}{'input':>5}{scores[0]:8.2f}  {example.name}")
        for k, step in enumerate(steps, 1):
            change, residual = (
                image.square().mean().sqrt() for image in (images[k] - images[k - 1], step.residual)
            )
            line = f"{'':20}{k:5}{scores[k]:8.2f}{step.size:8.3f}{change:9.4f}{residual:10.4f}"
            line += f"{step.error:23.1e}{step.error_on_residual:10.1e}{step.cosine:8.3f}"
            lines.append(line)
    note = "PSNR in dB, of 8-bit pixels; change and residual: root mean squares, of values in [0,1]"
    return "\n".join([*lines, note])


def save(figure, path: Path) -> None:
    """Write a matplotlib figure, whole or not at all: as JPEG or PNG, by the suffix."""
    from PIL import Image

    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    if path.suffix == ".jpg":
        picture = Image.open(file).convert("RGB")
        for quality in QUALITIES:
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=quality)
            if file.tell() <= MOST_BYTES:
                break
    write_bytes(path, file.getvalue())
    print(f"wrote {path}, {len(file.getvalue()) / 1000:.0f} kB", flush=True)


@command
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--weights", nargs="+", default=[], metavar="TASK=FILE", help="instead of the project's")
    add("--photos", type=Path, metavar="DIR", help="BSD400: shows where Φ started")
    add("--output", type=Path, default=FOLDER, metavar="DIR", help="(default: beside this file)")
    options = parser.parse_args(arguments)
    given = {task: Path(file) for task, _, file in (p.partition("=") for p in options.weights)}
    for task, file in given.items():
        if task not in SHOWN or not file.name:
            raise InputError(
                f"--weights {task}: expected TASK=FILE, TASK one of {', '.join(SHOWN)}"
            )

    photos = [photo for photo in bundled_photos() if photo.stem in PHOTOS]
    restored: dict[str, list[Example]] = {}
    shown: dict[str, tuple[Example, list[Step]]] = {}
    for task, (name, *corner) in SHOWN.items():
        try:
            weights = given.get(task) or default_weights(task)
        except FileNotFoundError as error:
            print(f"left out: {error}", flush=True)
            continue
        network, _ = load_model(weights, task)
        record = read_record(weights) or {}
        preset = degradation_of(record) or DEFAULT_WEIGHTS[task].removeprefix("small_")
        restored[task] = restore_photos(network, preset, photos)
        example = next(example for example in restored[task] if example.name == name)
        steps = gradient_steps(network, example.y, example.images)
        shown[task] = (example, steps)
        title = f"{task.replace('_', ' ')}: {trained_for(record) if record else weights.name}"
        figure = stages_figure(title, example, steps, tuple(corner))
        save(figure, options.output / f"inside_{task.lower()}.jpg")
    if not shown:
        raise InputError("no weights are there; expected them in pretrained_models, or --weights")
    save(psnr_figure(restored), options.output / "inside_psnr.png")
    if panels := phi_panels(options.photos):
        save(phi_figure(panels), options.output / "inside_phi.png")
    print(table(shown))


if __name__ == "__main__":
    main()
