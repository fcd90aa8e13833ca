"""Leave out or replace one part of DGUNet at a time, train each variant alike, and compare.

    python benchmarks/ablations.py --photos BSD400                      what is not measured yet
    python benchmarks/ablations.py --photos BSD400 --only deblurring    runs whose name has this
    python benchmarks/ablations.py --photos BSD400 --patches 200000     longer trainings
    python benchmarks/ablations.py                                      table and figure again

Two problems whose true operator A is known:

    sensing     compressive sensing, ratio 25 %, grey; Φ is learned, from principal components on
    deblurring  colour; a camera shake of 8 pixels, the same for all images and wrapped around the
                borders, and Gaussian noise, σ = 2.55 of 255

All runs of a seed see the same crops in the same order. Scores are the PSNR, over the values of an
image in [0,1], on photographs held out of the folder. `benchmarks/results/ablations.json` keeps
every finished run, so that an interrupted program goes on; the table goes into RESULTS.md and the
figure into figs/ablations.png. The variants are built here: the models' files know nothing of them.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import report
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgunet.base.errors import command
from dgunet.base.options import new_parser
from dgunet.Compressive_Sensing import DGUNet as sensing
from dgunet.Compressive_Sensing.data import Photographs, principal_components
from dgunet.data.crops import hold_out
from dgunet.data.degradations import shake_kernel
from dgunet.Deblurring import DGUNet as deblurring
from dgunet.images.files import list_images, middle, read_gray, read_rgb
from dgunet.images.psnr import psnr
from dgunet.inference.memory import keep_freed_memory
from dgunet.model.layers import PReLU
from dgunet.model.network import Network
from dgunet.tools.figure import save
from dgunet.training.losses import charbonnier_and_edge, clamped_squared_error

RUNS = report.RESULTS / "ablations.json"
FIGURE = report.ROOT / "figs" / "ablations.png"
SIZES = {"width": 8, "width_step": 4, "last_extra": 8}
STAGES = 3
PATCH, BATCH = 64, 4
RATE, WARM_UP = 2e-3, 0.1  # of Adam, falling to 0 along a cosine; share of the steps
HELD_OUT, HELD_OUT_SIDE = 20, 128
NOISE = 2.55 / 255


class Variant(NamedTuple):
    """A network that differs from DGUNet in one respect; `change` works on the network built."""

    change: Callable[[Problem, Network], None] | None = None
    stages: int = STAGES
    own_stages: bool = False
    seeds: int = 1


class NoFusion(nn.Module):
    """In place of ISFF: nothing of the previous stage's encoder and decoder."""

    def join(self, e: Tensor, d: Tensor) -> Tensor:
        return e[:, :0]

    def forward(self, h: Tensor, u: Tensor) -> Tensor:
        return h


class NoMerge(nn.Module):
    """In place of Merge: nothing of the previous stage's SAM. Compressive sensing hands over one
    tensor, [z, b], the others two."""

    def forward(self, z: Tensor, b: Tensor | None = None) -> Tensor:
        return z if b is not None else z[:, : z.shape[1] // 2]


class ZeroFeatures(nn.Module):
    """A convolution of [z, b] that sees no b."""

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        self.convolution = convolution

    def forward(self, z: Tensor) -> Tensor:
        own, b = z.chunk(2, dim=1)
        return self.convolution(torch.cat([own, torch.zeros_like(b)], dim=1))


class NoStep(nn.Module):
    """In place of FGDM:  v = x."""

    def forward(self, x: Tensor, *_) -> Tensor:
        return x


class TrueStep(nn.Module):
    """In place of FGDM:  v = x − Aᵀ(A x − y)  with the true A, nothing learned."""

    def __init__(self, problem: Problem):
        super().__init__()
        self.problem = problem

    def forward(self, x: Tensor, y: Tensor, A: nn.Module | None = None) -> Tensor:
        if A is not None:  # Φ; y stands for Φᵀy
            return x - (A.adjoint(A(x)) - y)
        return x - self.problem.adjoint(self.problem.blur(x) - y)


def no_fusion(problem: Problem, network: Network) -> None:
    for ipmm in network.ipmm[1:]:
        ipmm.fusion = nn.ModuleList(NoFusion() for _ in ipmm.fusion)


def no_merge(problem: Problem, network: Network) -> None:
    for ipmm in network.ipmm[1:]:
        ipmm.merge = NoMerge()


def no_features(problem: Problem, network: Network) -> None:
    no_fusion(problem, network)
    no_merge(problem, network)
    network.last.concat = ZeroFeatures(network.last.concat)


def no_step(problem: Problem, network: Network) -> None:
    network.fgdm = nn.ModuleList(NoStep() for _ in network.fgdm)


def true_step(problem: Problem, network: Network) -> None:
    network.fgdm = nn.ModuleList(TrueStep(problem) for _ in network.fgdm)


FULL = "DGUNet, 3 stages"
VARIANTS = {
    FULL: Variant(seeds=3),
    "no ISFF": Variant(no_fusion, seeds=3),
    "no Merge": Variant(no_merge),
    "no features handed on": Variant(no_features),
    "no gradient step": Variant(no_step, seeds=3),
    "true operator, ρ = 1": Variant(true_step),
    "2 stages": Variant(stages=2),
    "5 stages": Variant(stages=5),
    "7 stages": Variant(stages=7),
    "5 stages, each with its own modules": Variant(stages=5, own_stages=True),
}


class OwnStages(deblurring.DGUNet):
    """DGUNet with modules of its own for every stage, and else the same (DGUNet_plus has another
    last stage, too)."""

    def __init__(self, width: int, width_step: int, last_extra: int, stages: int):
        sizes = {"width": width, "width_step": width_step, "last_extra": last_extra}
        Network.__init__(self, **sizes, stages=stages)
        self.build(stages, PReLU(), PReLU(), last_extra)


class Problem:
    """What the variants are trained for: photographs of a folder, degradation, loss."""

    name: str
    patches: int  # of a training
    loss: Callable

    def __init__(self, photos: Path):
        paths, held_out = hold_out(list_images(photos, recursive=True), HELD_OUT, str(photos))
        self.images = [self.read(path) for path in paths]
        self.held_out = [
            self.to_batch([middle(self.read(p), HELD_OUT_SIDE, HELD_OUT_SIDE)]) for p in held_out
        ]

    def crops(self, seed: int):
        """Yield the batches of a training, N×C×H×W in [0,1], the same for all variants."""
        rng = np.random.default_rng(seed)
        for _ in range(self.patches // BATCH):
            chosen = [self.images[i] for i in rng.integers(len(self.images), size=BATCH)]
            yield self.to_batch([self.crop(image, rng) for image in chosen])

    @staticmethod
    def crop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return a square crop at a random place, flipped and turned at random."""
        top, left = (rng.integers(side - PATCH + 1) for side in image.shape[:2])
        crop = np.rot90(image[top : top + PATCH, left : left + PATCH], rng.integers(4))
        return crop[::-1] if rng.integers(2) else crop

    @staticmethod
    def to_batch(images: list[np.ndarray]) -> Tensor:
        pixels = torch.from_numpy(np.stack(images)).float() / 255
        return pixels.permute(0, 3, 1, 2) if pixels.ndim == 4 else pixels[:, None]


class Sensing(Problem):
    name, patches = "sensing", 1200
    loss = staticmethod(clamped_squared_error)
    read = staticmethod(read_gray)

    def network(self, variant: Variant) -> Network:
        model = sensing.DGUNet_plus if variant.own_stages else sensing.DGUNet
        network = model(cs_ratio=25, **SIZES, stages=variant.stages)
        network.A.Phi.data.copy_(self.phi(len(network.A.Phi)))
        return network

    @functools.cache  # noqa: B019
    def phi(self, count: int) -> Tensor:
        photographs = Photographs(self.images, [""] * len(self.images), 32)
        return principal_components(photographs, count, blocks=20_000)

    def degrade(self, target: Tensor, generator: torch.Generator) -> Tensor:
        return target  # the network measures it


class Deblurring(Problem):
    name, patches = "deblurring", 600
    loss = staticmethod(charbonnier_and_edge)
    read = staticmethod(read_rgb)
    kernel = torch.from_numpy(shake_kernel(8, np.random.default_rng(0))).float()

    def network(self, variant: Variant) -> Network:
        model = OwnStages if variant.own_stages else deblurring.DGUNet
        return model(**SIZES, stages=variant.stages)

    def blur(self, x: Tensor, adjoint: bool = False) -> Tensor:
        """Return A x, or Aᵀ x: correlation with the flipped kernel, or with the kernel."""
        kernel = self.kernel if adjoint else self.kernel.flip(0, 1)
        margin = len(kernel) // 2
        with torch.autocast("cpu", enabled=False):
            wrapped = F.pad(x.float(), [margin] * 4, mode="circular")
            return F.conv2d(wrapped, kernel.expand(3, 1, *kernel.shape), groups=3)

    def adjoint(self, x: Tensor) -> Tensor:
        return self.blur(x, adjoint=True)

    def degrade(self, target: Tensor, generator: torch.Generator) -> Tensor:
        return self.blur(target) + NOISE * torch.randn(target.shape, generator=generator)


PROBLEMS = {problem.name: problem for problem in (Sensing, Deblurring)}


def train(problem: Problem, variant: Variant, seed: int) -> dict:
    """Train a variant and return its score, its size and the seconds of CPU that it took."""
    torch.manual_seed(seed)
    network = problem.network(variant)
    network.zero_image_convolutions()
    if variant.change:
        variant.change(problem, network)
    network = network.to(memory_format=torch.channels_last)
    steps = problem.patches // BATCH
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE, fused=True)
    warm_up = max(1, round(WARM_UP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (1 + np.cos(np.pi * step / steps)) / 2)
    )
    noise = torch.Generator().manual_seed(seed)
    start = time.process_time()
    for target in problem.crops(seed):
        degraded = problem.degrade(target, noise)
        with torch.autocast("cpu", torch.bfloat16):
            loss = problem.loss(network(degraded), target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        optimizer.step()
        schedule.step()
    return {
        "psnr": round(score(problem, network), 4),
        "parameters": sum(p.numel() for p in network.parameters()),
        "cpu_seconds": round(time.process_time() - start, 1),
        "commit": report.commit(),
        "machine": report.machine(torch.device("cpu"), torch.get_num_threads()),
    }


@torch.inference_mode()
def score(problem: Problem, network: Network) -> float:
    """Return the mean PSNR in dB on the photographs held out."""
    noise = torch.Generator().manual_seed(0)
    return statistics.mean(
        psnr(network(problem.degrade(target, noise))[0].clamp(0, 1), target)
        for target in problem.held_out
    )


def measure(options: argparse.Namespace, runs: dict) -> None:
    """Train what is asked for and not there yet, all variants with one seed, then with the next."""
    for build in PROBLEMS.values():
        problem = None
        for seed in range(max(variant.seeds for variant in VARIANTS.values())):
            for label, variant in VARIANTS.items():
                name = f"{build.name}/{label}/{build.patches}/{seed}"
                if seed >= variant.seeds or name in runs or options.only not in name:
                    continue
                problem = problem or build(options.photos)
                runs[name] = train(problem, variant, seed)
                print(f"{name}: {runs[name]['psnr']:.2f} dB", flush=True)
                report.write_json(RUNS, runs)


def runs_of(runs: Mapping, problem: type[Problem]) -> dict[str, list[dict]]:
    """Return the finished runs of a problem: variant → a run for each seed."""
    found = {}
    for label, variant in VARIANTS.items():
        names = [f"{problem.name}/{label}/{problem.patches}/{n}" for n in range(variant.seeds)]
        if finished := [runs[name] for name in names if name in runs]:
            found[label] = finished
    return found


def differences(of_variant: Mapping[str, list[dict]], label: str) -> list[float]:
    """Return the differences in PSNR from DGUNet, each between runs of one seed; of DGUNet itself
    those from its own mean."""
    psnr, full = ([run["psnr"] for run in of_variant[name]] for name in (label, FULL))
    if label == FULL:
        full = [statistics.mean(full)] * len(full)
    return [value - other for value, other in zip(psnr, full, strict=False)]


def write_down(runs: Mapping) -> None:
    """Write the table into RESULTS.md, and the figure."""
    lines: dict[str, dict] = {label: {"variant": label} for label in VARIANTS}
    for name, problem in PROBLEMS.items():
        of_variant, column = runs_of(runs, problem), f"{name}, {problem.patches:,} patches"
        for label, finished in of_variant.items():
            gains, line = differences(of_variant, label), lines[label]
            line[column] = f"{statistics.mean(gains):+.2f}"
            if label == FULL:
                line[column] = f"{statistics.mean(run['psnr'] for run in finished):.2f} dB"
            if len(gains) > 1:
                line[column] += f" ({min(gains):+.2f} … {max(gains):+.2f})"
            seconds = statistics.mean(run["cpu_seconds"] for run in finished)
            line[f"{name}: parameters"] = finished[0]["parameters"]
            line[f"{name}: CPU seconds"] = round(seconds)
    report.fill(report.REPORT, {"ablations": report.table(list(lines.values()))})
    draw(runs)


def draw(runs: Mapping) -> None:
    """Draw each variant's differences from DGUNet, a dot for each seed."""
    from matplotlib.figure import Figure

    labels = list(VARIANTS)
    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    columns = figure.subplots(1, len(PROBLEMS), sharey=True)
    for axes, problem in zip(columns, PROBLEMS.values(), strict=True):
        of_variant = runs_of(runs, problem)
        for label in of_variant:
            gains = differences(of_variant, label)
            axes.plot(gains, [labels.index(label)] * len(gains), "o", color="C0", alpha=0.7)
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.set_title(f"{problem.name}, {problem.patches:,} patches", fontsize=10)
        axes.set_xlabel("PSNR above DGUNet's (dB)")
        axes.grid(axis="x", alpha=0.3)
    columns[0].set_yticks(range(len(labels)), labels)
    columns[0].invert_yaxis()
    save(figure, FIGURE)


@command
def main(arguments: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--photos", type=Path, metavar="DIR", help="BSD400; without it nothing is trained")
    add("--patches", type=int, metavar="N", help="that each training sees (as in the table)")
    add("--only", default="", metavar="TEXT", help="only runs whose name has this in it")
    options = parser.parse_args(arguments)
    for problem in PROBLEMS.values():
        problem.patches = options.patches or problem.patches
    runs = report.read_json(RUNS)
    if options.photos:
        keep_freed_memory()
        measure(options, runs)
    write_down(runs)


if __name__ == "__main__":
    main()
