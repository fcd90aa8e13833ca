"""Training: the step alone, its memory, loading, and both together."""

from __future__ import annotations

import copy
import functools
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from bench_inference import TINY, Options, operator_shares, published
from cost import SMALL, gflop
from loader import make_pairs, rate
from measure import (
    interleaved,
    markdown,
    megabytes_table,
    peak_memory,
    ratios,
    run_alone,
    seconds_cell,
    summary,
    tf32,
    timed,
)

from dgunet.data.crops import PackedPairs, PairedImages
from dgunet.Deraining.train import TASK
from dgunet.tools.pack import pack
from dgunet.training.configuration import load_config
from dgunet.training.losses import EDGE_WEIGHT, charbonnier, laplacian
from dgunet.training.trainer import Trainer

YAML = Path(__file__).resolve().parents[1] / "Deraining" / "training.yml"
OURS = {"TRAINING.CHANNELS_LAST": True, "OPTIM.FUSED": True}
BF16 = {"TRAINING.PRECISION": "bf16"}
STAGEWISE = {"TRAINING.CHECKPOINT_STAGES": True}
PYTORCHS_TF32 = "plain, TF32 as PyTorch sets it"  # as it is in ours
KINDS = {"PNG folders": "pairs", "packed file": "pairs.h5"}
_FOLDERS: list[tempfile.TemporaryDirectory] = []


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
        return [Case("tiny", {**TINY, "stages": 3}, 2, 16)]
    small, full = Case("small.yml", SMALL, 8, 96), Case("Deraining DGUNet", {}, 4, 64)
    if options.device.startswith("cuda"):
        full = replace(full, batch=16, patch=256 if options.full else 128)
    return [small, full]


def pairs(options: Options) -> int:
    return 2 if options.smoke else 12


def variants(options: Options) -> dict[str, dict | None]:
    """Return the ways to train: keys of the configuration; None is the plain step, written here."""
    found = {
        "plain": None,
        **({PYTORCHS_TF32: None} if options.device.startswith("cuda") else {}),
        "ours": OURS,
        "ours, bf16": OURS | BF16,
        "ours, stages checkpointed": OURS | STAGEWISE,
    }
    if options.compile:
        found["ours, bf16, compiled"] = OURS | BF16 | {"TRAINING.COMPILE": True}
    return found


@functools.cache
def training_data(pairs: int) -> dict[str, Path]:
    """Return pairs of 1280×720 pixels, as files and packed, there until the program ends."""
    folder = tempfile.TemporaryDirectory()
    _FOLDERS.append(folder)
    paths = {name: Path(folder.name) / file for name, file in KINDS.items()}
    make_pairs(paths["PNG folders"], pairs)
    pack(*paths.values())
    return paths


def trainer(case: Case, data: Path, folder: str, options: Options, **keys) -> Trainer:
    """Return the trainer that Deraining/train.py would make, but for `keys`."""
    values = {
        "GPU": [0] if options.device.startswith("cuda") else [],
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
    config = load_config(YAML, words, TASK.recipe, TASK.checks)
    config.MODEL.MODE = TASK.name
    return Trainer(TASK, config)


def our_step(run: Trainer, samples: dict) -> Callable[[], float]:
    run.network.train()

    def step() -> float:
        run.begin_epoch(1)
        return run.step(samples)

    return step


def plain_step(
    network: torch.nn.Module, rate: float, samples: dict, allow: bool | None = False
) -> Callable[[], float]:
    """Return a step as it is written without a thought about time: float32, NCHW, the default Adam,
    and the losses stage by stage, each with its own Laplacians. `allow` is `tf32`'s."""
    device = next(network.parameters()).device
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    network.train()

    @tf32(allow)
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
    for name, keys in variants(options).items():
        if names and name not in names:
            continue
        run = trainer(case, data, folder, options, **(keys or {}))
        samples = samples or next(iter(run.loader))
        weights = weights or copy.deepcopy(run.model.state_dict())
        run.model.load_state_dict(weights)
        lr = run.optimizer.param_groups[0]["lr"]
        if keys is None:
            if options.reference and not case.sizes and name == "plain":
                code = published(options.reference, run.model).to(run.devices.device)
                found["published code"] = plain_step(code, lr, samples)
            allow = None if name == PYTORCHS_TF32 else False
            found[name] = plain_step(run.model, lr, samples, allow)
        else:
            found[name] = our_step(run, samples)
    return found, samples


def measure_training(options: Options) -> list[dict]:
    """Time the steps; before, compare the losses of the first two."""
    device = options.start()
    results = []
    data = training_data(pairs(options))["packed file"]
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(options):
            functions, _ = steps(case, data, folder, options)
            losses = {name: [step(), step()] for name, step in functions.items()}
            seconds = interleaved(functions, device, options.runs, limit=30)
            results.append(
                {
                    "case": str(case),
                    "batch": case.batch,
                    "gflop": 3 * gflop("Deraining", "DGUNet", case.sizes, shape_of(case)),
                    "variants": {
                        name: {
                            "seconds": spread,
                            "images_per_second": case.batch / spread["median"],
                            "times_plain": ratios(seconds["plain"], spread),
                            "loss_difference": [
                                abs(value / plain - 1)
                                for value, plain in zip(losses[name], losses["plain"], strict=True)
                            ],
                        }
                        for name, spread in seconds.items()
                    },
                }
            )
    return results


def shape_of(case: Case) -> tuple[int, int, int]:
    return case.batch, case.patch, case.patch


def training_table(results: list[dict]) -> str:
    header = [
        "variant",
        "seconds a step",
        "images/s",
        "times plain",
        "GFLOP/s",
        "loss differs, first and second step",
    ]
    tables = []
    for result in results:
        rows = [
            [
                name,
                seconds_cell(row["seconds"]),
                f"{row['images_per_second']:.2f}",
                f"{row['times_plain']['median']:.2f}",
                f"{result['gflop'] / row['seconds']['median']:,.0f}",
                " and ".join(f"{value:.0e}" for value in row["loss_difference"]),
            ]
            for name, row in result["variants"].items()
        ]
        tables.append(f"**{result['case']}** ({result['gflop']:,.0f} GFLOP a step)\n")
        tables.append(markdown(header, rows) + "\n")
    return "\n".join(tables).strip()


def measure_training_memory(options: Options) -> dict:
    """Measure the peak memory of a step of the largest case, each variant in its own process."""
    case = cases(options)[-1]
    names = list(variants(replace(options, compile=False)))[: 1 if options.smoke else None]
    data = training_data(pairs(options))["packed file"]
    peaks = {name: run_alone(peak_of_step, name, case, data, options) for name in names}
    return {"case": str(case), "megabytes": peaks}


def peak_of_step(name: str, case: Case, data: Path, options: Options) -> float:
    device = options.start()
    options = replace(options, reference=None)
    with tempfile.TemporaryDirectory() as folder:
        functions, samples = steps(case, data, folder, options, [name])
        images = {key: samples[key] for key in ("degraded", "target")}
        samples |= {key: image[..., :16, :16] for key, image in images.items()}
        functions[name]()  # the optimizer's state, and what torch loads when first used
        samples |= images
        return peak_memory(functions[name], device)


def training_memory_table(result: dict) -> str:
    table = megabytes_table("step", result["megabytes"])
    return f"**{result['case']}**, above the weights and Adam's state\n\n{table}"


def measure_loading(options: Options) -> dict:
    """Measure crops per second of one process, and training with loading beside the step alone."""
    device = options.start()
    runs = min(3, options.runs)
    case, data = cases(options)[0], training_data(pairs(options))
    with tempfile.TemporaryDirectory() as folder:
        patch = 64 if options.smoke else 256
        sources = {
            "PNG folders": (PairedImages(data["PNG folders"], patch), pairs(options)),
            "packed file": (PackedPairs(data["packed file"], patch), 20 * pairs(options)),
        }
        crops = {name: [] for name in sources}
        for run in range(runs + 1):  # the first warms up
            for name, (source, samples) in sources.items():
                crops[name].append(rate(source, run, samples))
        keys = OURS | BF16 | {"TRAINING.WORKERS": 1}
        trained = {
            name: trainer(case, path, folder, options, **keys) for name, path in data.items()
        }
        together = {name: [] for name in trained}
        for run in range(runs):
            for name, of_source in trained.items():
                together[name].append(
                    end_to_end(of_source, run + 1, 3 if options.smoke else 12, device)
                )
        for of_source in trained.values():
            of_source.loader = None  # ends its workers
    return {
        "patch": patch,
        "case": str(case),
        "crops_per_second": {name: summary(of_source[1:]) for name, of_source in crops.items()},
        "end_to_end": {
            name: {
                key: summary([one[key] for one in measured]) for key in ("images", "alone", "wait")
            }
            for name, measured in together.items()
        },
    }


def end_to_end(run: Trainer, epoch: int, count: int, device: torch.device) -> dict[str, float]:
    """Take steps on what the loader gives, then as many on its last batch. Return images/s of both
    and the share of time spent waiting for data."""
    run.network.train()
    run.sampler.set_position(epoch)
    run.begin_epoch(epoch)
    batches = iter(run.loader)
    samples = next(batches)  # the workers start
    run.step(samples)
    images, waited, start = 0, 0.0, time.perf_counter()
    for _ in range(count):
        asked = time.perf_counter()
        samples = next(batches)
        waited += time.perf_counter() - asked
        run.step(samples)
        images += len(samples["target"])
    seconds = time.perf_counter() - start
    del batches
    run.begin_epoch(epoch)
    alone = [timed(lambda: run.step(samples), device) for _ in range(count)]
    return {
        "images": images / seconds,
        "alone": count * len(samples["target"]) / sum(alone),
        "wait": waited / seconds,
    }


def loading_table(result: dict) -> str:
    crops = [
        [name, f"{row['median']:,.1f}", f"{row['lowest']:,.1f}–{row['highest']:,.1f}"]
        for name, row in result["crops_per_second"].items()
    ]
    rows = [
        [
            name,
            *(f"{row[key]['median']:.2f}" for key in ("images", "alone")),
            f"{row['images']['median'] / row['alone']['median']:.0%}",
            f"{row['wait']['median']:.1%}",
        ]
        for name, row in result["end_to_end"].items()
    ]
    patch = f"{result['patch']}×{result['patch']}"
    packed = result["crops_per_second"]["packed file"]["median"]
    return "\n\n".join(
        [
            f"One process, crops of {patch} out of pairs of 1280×720, from the disk cache:",
            markdown(["data", "crops/s", "lowest–highest"], crops),
            f"Eight such processes, a core each, would feed {8 * packed:,.0f} patches a second to "
            "a GPU.",
            f"Training in bf16 with one loading process, {result['case']}:",
            markdown(
                ["data", "images/s", "the step alone", "of it", "of the time spent waiting"], rows
            ),
        ]
    )


def profile_step(options: Options) -> dict[str, dict[str, float]]:
    """Return the share of each operator in a training step."""
    device = options.start()
    case = cases(options)[-1]
    plain = replace(options, compile=False, reference=None)
    shares = {}
    data = training_data(pairs(options))["packed file"]
    with tempfile.TemporaryDirectory() as folder:
        for name, step in steps(case, data, folder, plain)[0].items():
            step()
            shares[f"{case}: {name}"] = operator_shares(step, device)
    return shares
