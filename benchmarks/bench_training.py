"""Training: the step alone, its memory, loading, and both together."""

from __future__ import annotations

import atexit
import copy
import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from bench_inference import SMALL, TINY, memory_rows, published
from measure import Options, interleaved, peak_memory, precision_of, run_alone, speed_up, work
from report import ROOT, spread

from dgunet.data.crops import PackedPairs, PairedImages
from dgunet.data.sampler import SampleKey
from dgunet.Deraining.train import TASK
from dgunet.inference.device import tf32
from dgunet.tools.pack import pack
from dgunet.tools.synthesize import bundled_photos, synthesize
from dgunet.training.configuration import load_config
from dgunet.training.losses import EDGE_WEIGHT, charbonnier, laplacian
from dgunet.training.trainer import Trainer

YAML = ROOT / "Deraining" / "training.yml"
OURS = {"TRAINING.CHANNELS_LAST": True}
BF16 = {"TRAINING.PRECISION": "bf16"}


@dataclass(frozen=True)
class Case:
    """A Deraining DGUNet (`sizes` as `build_model` takes them), trained with such batches."""

    name: str
    sizes: Mapping[str, int]
    batch: int
    patch: int

    def __str__(self) -> str:
        return f"{self.name}, {self.batch} patches of {self.patch}×{self.patch}"


def cases(options: Options) -> list[Case]:
    if options.smoke:
        return [Case("tiny", TINY, 2, 16)]
    small, full = Case("small.yml", SMALL, 8, 96), Case("Deraining DGUNet", {}, 4, 64)
    if options.cuda:
        full = replace(full, batch=16, patch=256 if options.full else 128)
    return [small, full]


def variants(options: Options) -> dict[str, dict | None]:
    """Return the ways to train: keys of the configuration; None is the plain step, written here."""
    found: dict[str, dict | None] = {"plain": None, "ours": OURS, "ours, bf16": OURS | BF16}
    if options.cuda:
        found["plain, TF32"] = None
        found["ours, TF32"] = OURS | {"TRAINING.PRECISION": "tf32"}
    found["ours, stages checkpointed"] = OURS | {"TRAINING.CHECKPOINT_STAGES": True}
    if options.compile:
        found["ours, bf16, compiled"] = OURS | BF16 | {"TRAINING.COMPILE": "default"}
    return found


@functools.cache
def training_data(smoke: bool) -> dict[str, Path]:
    """Return the photographs inside scikit-image and their blurred selves, as files and packed,
    there until the program ends."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    pairs, packed = Path(folder.name, "pairs"), Path(folder.name, "pairs.h5")
    synthesize("blur_mild", pairs, bundled_photos(), max_side=96 if smoke else None)
    pack(pairs, packed)
    return {"PNG folders": pairs, "packed file": packed}


def trainer(case: Case, data: Path, folder: str, options: Options, **keys) -> Trainer:
    """Return the trainer that Deraining/train.py would make, but for `keys`."""
    values = {
        "GPU": [0] if options.cuda else [],
        "VERBOSE": False,
        "OPTIM.BATCH_SIZE": case.batch,
        "TRAINING.TRAIN_PS": case.patch,
        "TRAINING.TRAIN_DIR": data,
        "TRAINING.VAL_DIR": "",
        "TRAINING.SAVE_DIR": folder,
        "TRAINING.WORKERS": 0,
        "DATA.REPEATS": 100,
        **{f"MODEL.{name.upper()}": value for name, value in case.sizes.items()},
        **keys,
    }
    words = [str(word) for pair in values.items() for word in pair]
    config = load_config(YAML, words, TASK.recipe)
    config.MODEL.MODE = TASK.name
    return Trainer(TASK, config)


def our_step(run: Trainer, batches: Iterator[dict]) -> Callable[[], float]:
    """Return a step of a trainer, with the learning rate of the run's first one."""
    run.network.train()
    rate = run.schedule.rate(0)

    def step() -> float:
        run.begin_epoch(1)
        return run.step(next(batches), rate)

    return step


def plain_step(
    network: torch.nn.Module, rate: float, samples: dict, in_tf32: bool = False
) -> Callable[[], float]:
    """Return a step as written without a thought about time: float32, NCHW, the default Adam, and
    the losses stage by stage."""
    device = next(network.parameters()).device
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    network.train()

    @tf32(in_tf32)
    def step() -> float:
        optimizer.zero_grad()
        degraded, target = samples["degraded"].to(device), samples["target"].to(device)
        loss = 0
        for stage in network(degraded):
            edge = charbonnier(laplacian(stage), laplacian(target))
            loss = loss + charbonnier(stage, target) + EDGE_WEIGHT * edge
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def steps(
    case: Case, data: Path, folder: str, options: Options, names: list[str] | None = None
) -> tuple[dict[str, Callable[[], float]], dict]:
    """Return a function for each variant, which takes a step on one batch, and the batch. All start
    from the same weights."""
    found, samples, weights = {}, None, None
    for name in names or variants(options):
        keys = variants(options)[name]
        run = trainer(case, data, folder, options, **(keys or {}))
        samples = samples or next(iter(run.loader))
        weights = weights or copy.deepcopy(run.model.state_dict())
        run.model.load_state_dict(weights)
        rate = run.schedule.rate(0)
        if keys is not None:
            found[name] = our_step(run, itertools.repeat(samples))
            continue
        if options.reference and not case.sizes and name == "plain":
            code = published(options.reference, run.model).to(run.devices.device)
            found["published code"] = plain_step(code, rate, samples)
        found[name] = plain_step(run.model, rate, samples, "TF32" in name)
    return found, samples


def measure_training(options: Options, ceilings: Mapping[str, Mapping]) -> dict[str, list[dict]]:
    """Time the steps; before, count the work of the second one and compare the third one's loss."""
    options.start()
    tables, data = {}, training_data(options.smoke)["packed file"]
    for case in cases(options):
        with tempfile.TemporaryDirectory() as folder:
            functions, _ = steps(case, data, folder, options)
            losses, works = {}, {}
            for name, step in functions.items():
                step()
                if "compiled" in name:
                    step()
                else:
                    works[name] = work(step)
                losses[name] = step()
            seconds = interleaved(functions, options)
        tables[f"{case}"] = [
            {
                "step": name,
                "seconds": spread(runs),
                "images/s": case.batch / spread(runs)["median"],
                "speed-up": speed_up(seconds["plain"], runs)["median"],
                **works[name.removesuffix(", compiled")].floor(ceilings, precision_of(name)),
                "third loss differs by": abs(losses[name] / losses["plain"] - 1),
            }
            for name, runs in seconds.items()
        ]
    return tables


def measure_training_memory(options: Options, _ceilings: Mapping) -> dict[str, list[dict]]:
    """Measure the peak memory of a step of the largest case, each variant in its own process."""
    options = replace(options, compile=False, reference=None)
    case, data = cases(options)[-1], training_data(options.smoke)["packed file"]
    peaks = {name: run_alone(_peak, name, case, data, options) for name in variants(options)}
    return {f"{case}, above the weights and Adam's state": memory_rows(peaks)}


def _peak(name: str, case: Case, data: Path, options: Options) -> float:
    device = options.start()
    with tempfile.TemporaryDirectory() as folder:
        functions, samples = steps(case, data, folder, options, [name])
        images = {key: samples[key] for key in ("degraded", "target")}
        samples |= {key: image[..., :16, :16] for key, image in images.items()}
        functions[name]()  # the optimizer's state, and what torch loads when first used
        samples |= images
        return peak_memory(functions[name], device)


def measure_loading(options: Options, _ceilings: Mapping) -> dict[str, list[dict]]:
    """Measure crops per second of one process, and training with loading beside the step alone."""
    options.start()
    data, patch = training_data(options.smoke), 64 if options.smoke else 256
    sources = {"PNG folders": PairedImages, "packed file": PackedPairs}
    readers = {name: _reader(source(data[name], patch)) for name, source in sources.items()}
    seconds = interleaved(readers, options, 1)
    crops = [{"data": n, "crops/s": spread([1 / s for s in runs])} for n, runs in seconds.items()]
    case, keys = cases(options)[0], OURS | BF16 | {"TRAINING.WORKERS": 0 if options.smoke else 1}
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: trainer(case, path, folder, options, **keys) for name, path in data.items()}
        samples = next(iter(runs["packed file"].loader))
        functions = {"the step alone": our_step(runs["packed file"], itertools.repeat(samples))}
        functions |= {name: our_step(run, _endless(run)) for name, run in runs.items()}
        # Long rounds: while another takes its turn, workers load two batches in advance.
        seconds = interleaved(functions, options, 10)
        for run in runs.values():
            run.loader = None  # ends its workers
    alone = seconds["the step alone"]
    return {
        f"One process, crops of {patch}×{patch} out of photographs in the disk cache": crops,
        f"Training in bf16 with one loading process, {case}": [
            {
                "batches from": name,
                "images/s": spread([case.batch / s for s in runs]),
                "% of the step alone": 100 * speed_up(alone, runs)["median"],
            }
            for name, runs in seconds.items()
        ],
    }


def _reader(source: PairedImages | PackedPairs) -> Callable[[], object]:
    keys = (SampleKey(0, number, number % len(source)) for number in itertools.count())
    return lambda: source[next(keys)]


def _endless(run: Trainer) -> Iterator[dict]:
    for epoch in itertools.count(1):
        run.sampler.set_position(epoch)
        yield from run.loader
