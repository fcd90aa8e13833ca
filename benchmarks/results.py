"""Measure the scores in RESULTS.md, or check that they are what is written there.

    make results                 check those on the photographs that come with scikit-image
    make results DATA=DIR        and those on DIR/CBSD68 and DIR/Set11, clean photographs
    python benchmarks/results.py --data DIR --slow
                                 all, however long they take (BSD68 and BM3D)
    python benchmarks/results.py --data DIR --write
                                 measure what is new, or whose weights are, and write it down
    python benchmarks/results.py --data DIR --only Denoising/CBSD68 [--write]
                                 the rows whose name has this in it; with --write measured anew

A number that differs by more than 0.02 dB (0.0005 of SSIM) from what is written ends the program
with exit code 1 and a line on each. The numbers are in benchmarks/results/scores.json, and
RESULTS.md's tables are made of them.

A row is named task/data/method. Pairs are made as `python -m dgunet.tools.synthesize PRESET` makes
them, seed 0, 8 bits; "unclipped" is the float noise of Denoising/test.py --sigma 25. Networks and
protocols are those of the tasks' test.py; the other methods are in baselines.py.
"""

import argparse
import importlib.metadata
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import baselines
import numpy as np
import torch
from joblib import Parallel, delayed
from loader import commit, processor

from dgunet.base.errors import InputError, command
from dgunet.base.files import sha256, write_atomically
from dgunet.Compressive_Sensing.data import centre
from dgunet.Compressive_Sensing.DGUNet import RATIOS
from dgunet.Compressive_Sensing.test import SETS
from dgunet.Compressive_Sensing.test import restore as measure_and_reconstruct
from dgunet.data.degradations import PRESETS, pair_generator, shake_kernel
from dgunet.Denoising.test import noisy_sets
from dgunet.images.files import list_images, pair_by_name, read_gray, read_image, read_rgb, to_uint8
from dgunet.model.registry import MODELS, TASKS
from dgunet.scoring.protocols import Score, get_protocol, mean_score
from dgunet.scoring.published import published_scores
from dgunet.scoring.test import TrainedNetwork, load_trained
from dgunet.tools.synthesize import bundled_photos, synthesize

ROOT = Path(__file__).resolve().parents[1]
SCORES = ROOT / "benchmarks" / "results" / "scores.json"
REPORT = ROOT / "RESULTS.md"
TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)

TOLERANCES = {"psnr": 0.02, "least_gain": 0.02, "ssim": 0.0005}  # dB, dB, 1
SLOW = 180  # seconds of CPU, beyond which a row is only checked with --slow
PHOTOS, LARGEST = "photographs", 512  # scikit-image's, of which the middle, at most so many pixels
SIGMA = 25 / 255
OURS = "DGUNet"
NEEDS = {"wavelets": "PyWavelets", "BM3D": "bm3d"}  # packages that this project does not install
ONE_AT_A_TIME = ("BM3D",)  # it aborts when two threads call it
NOT_ASKED, WRITTEN = "not asked for", "written already"
UNTOLD = ("", NOT_ASKED, WRITTEN)
PACKAGES = ("scikit-image", *NEEDS.values())
RESTORATION = {  # task → the degradation that its small weights are for, and the protocol
    "Deblurring": ("blur_mild", "matlab_rgb"),
    "Deraining": ("rain_medium", "deraining_y"),
    "Denoising": ("gaussian25", "gaussian_rgb"),
}


@dataclass(frozen=True)
class Sample:
    """An image: `degraded` is uint8 or float H×W×3, in compressive sensing the target itself, uint8
    H×W."""

    name: str
    degraded: np.ndarray
    target: np.ndarray

    @property
    def floats(self) -> np.ndarray:
        """The degraded image in [0,1]; noise that is not clipped leaves that range."""
        if self.degraded.dtype == np.uint8:
            return self.degraded / np.float32(255)
        return self.degraded


@dataclass(frozen=True)
class Case:
    """Images of one kind, which several methods restore."""

    task: str
    data: str
    weights: Path
    protocol: str
    preset: str = ""
    ratio: int = 0

    @property
    def name(self) -> str:
        return f"{self.task}{f'_{self.ratio}' if self.ratio else ''}/{self.data}"

    @property
    def folder(self) -> str:
        """The folder of the photographs in --data; empty for scikit-image's."""
        return "" if self.data == PHOTOS else self.data.removesuffix("_unclipped")

    @cached_property
    def network(self) -> TrainedNetwork:
        options = argparse.Namespace(
            weights=self.weights, config=None, model=None, device="cpu", jobs=1
        )
        return load_trained(self.task, options)

    @cached_property
    def methods(self) -> dict[str, Callable[[Sample], np.ndarray]]:
        """What makes an image of a sample, by name; the first is what gains are counted from."""
        if self.ratio:
            return {
                "linear": lambda s: baselines.linear_reconstruction(self.network.network, s.target),
                "total variation": lambda s: baselines.total_variation_reconstruction(
                    self.network.network, s.target
                ),
                OURS: lambda s: measure_and_reconstruct(self.network, s.target),
            }
        before = {
            "Deblurring": {
                "Richardson–Lucy, Gaussian": lambda s: baselines.richardson_lucy(
                    s.floats, baselines.gaussian_kernel(1.1), 8
                ),
                "unsupervised Wiener, true kernel": lambda s: baselines.unsupervised_wiener(
                    s.floats, true_kernel(s.name, self.preset)
                ),
                "Richardson–Lucy, true kernel": lambda s: baselines.richardson_lucy(
                    s.floats, true_kernel(s.name, self.preset), 80
                ),
            },
            "Deraining": {"opening": lambda s: baselines.opening(s.floats)},
            "Denoising": {
                "total variation": lambda s: baselines.total_variation(s.floats),
                "wavelets": lambda s: baselines.wavelet(s.floats, SIGMA),
                "non-local means": lambda s: baselines.non_local_means(s.floats, SIGMA),
                "BM3D": lambda s: baselines.bm3d(s.floats, SIGMA),
            },
        }[self.task]
        return {
            "input": lambda s: to_8_bit(s.degraded),
            **{name: lambda s, f=method: to_8_bit(f(s)) for name, method in before.items()},
            OURS: lambda s: to_uint8(self.network.restore(s.degraded)),
        }

    def samples(self, data: Path | None) -> list[Sample]:
        """Return the degraded images and their targets."""
        photos = list_images(data / self.folder) if self.folder else bundled_photos()
        side = None if self.folder else LARGEST
        if self.ratio:
            images = [(path.stem, read_gray(path)) for path in photos]
            images = [(name, centre(image, side) if side else image) for name, image in images]
            return [Sample(name, image, image) for name, image in images]
        if self.data.endswith("_unclipped"):
            noisy = noisy_sets(data / self.folder, [255 * SIGMA], grey=False)[0]
            return [Sample(path.stem, noisy.read(path), read_rgb(path)) for path in noisy.inputs]
        with tempfile.TemporaryDirectory() as pairs:
            synthesize(self.preset, pairs, photos, max_side=side)
            return [
                Sample(first.stem, read_image(first), read_image(second))
                for first, second in pair_by_name(f"{pairs}/input", f"{pairs}/target")
            ]


def all_cases() -> list[Case]:
    """Return the cases whose weights are there."""
    cases = []
    for data in (PHOTOS, "CBSD68", "CBSD68_unclipped"):
        for task, (preset, protocol) in RESTORATION.items():
            if data != "CBSD68_unclipped" or task == "Denoising":
                weights = ROOT / task / "pretrained_models" / f"small_{preset}.safetensors"
                cases.append(Case(task, data, weights, protocol, preset))
    task = "Compressive_Sensing"
    for data in (PHOTOS, *SETS):
        for ratio in RATIOS:
            weights = ROOT / task / "pretrained_models" / f"DGUNet_{ratio}.safetensors"
            cases.append(Case(task, data, weights, "compressive_sensing_y", ratio=ratio))
    return [case for case in cases if case.weights.is_file()]


def true_kernel(name: str, preset: str) -> np.ndarray:
    """Return the kernel that `synthesize` blurred the photograph of that name with (seed 0)."""
    rng = pair_generator(0, preset, name)
    return shake_kernel(rng.uniform(*PRESETS[preset].extent), rng)


def to_8_bit(image: np.ndarray) -> np.ndarray:
    """Return a float image in [0,1] as uint8, clipped and rounded, as it would be written."""
    if image.dtype == np.uint8:
        return image
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def score(case: Case, samples: list[Sample], method: str, jobs: int) -> tuple[list[Score], float]:
    """Return the scores of the images that a method makes, and the seconds of CPU it took."""
    protocol, restore = get_protocol(case.protocol), case.methods[method]

    def score_one(sample: Sample) -> Score:
        return Score(sample.name, *protocol(restore(sample), sample.target))

    if method in ONE_AT_A_TIME:
        jobs = 1
    start = time.process_time()
    scores = Parallel(n_jobs=jobs, prefer="threads")(delayed(score_one)(s) for s in samples)
    return scores, time.process_time() - start


def summary(scores: list[Score], before: list[Score]) -> dict:
    """Return means, and the smallest gain in PSNR of an image over what it was `before`."""
    mean = mean_score(scores)
    found = {"images": len(scores), "psnr": round(mean.psnr, 4), "ssim": round(mean.ssim, 5)}
    if scores is not before:
        gains = [(s.psnr - b.psnr, s.name) for s, b in zip(scores, before, strict=True)]
        least, image = min(gains)
        found |= {"least_gain": round(least, 4), "on": image}
    return found


def circumstances(case: Case, method: str, seconds: float) -> dict:
    """Return what else is written down about a row."""
    made_by = {}
    if case.ratio or method == OURS:
        made_by = {"weights": case.weights.relative_to(ROOT).as_posix()}
        made_by |= {"sha256": sha256(case.weights), "torch": torch.__version__}
    if method not in ("input", "linear", OURS):
        package = NEEDS.get(method, "scikit-image")
        made_by[package] = importlib.metadata.version(package)
    return {
        "protocol": case.protocol,
        **made_by,
        "cpu_seconds": round(seconds, 1),
        "hardware": f"{processor()}, {os.cpu_count()} cores",
        "commit": commit(),
    }


def differences(name: str, found: dict, expected: dict) -> list[str]:
    """Return a line for each number that is not what is written.

    >>> differences("a/b/c", {"psnr": 30.5, "ssim": 0.9}, {"psnr": 30.53, "ssim": 0.9})
    ['a/b/c: psnr is 30.5000, expected 30.5300']
    """
    return [
        f"{name}: {key} is {found[key]:.4f}, expected {expected[key]:.4f}"
        for key, tolerance in TOLERANCES.items()
        if key in found and not abs(found[key] - expected[key]) <= tolerance
    ]


def read_rows() -> dict[str, dict]:
    return json.loads(SCORES.read_text(encoding="utf-8")) if SCORES.is_file() else {}


def write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def write_rows(rows: dict[str, dict]) -> None:
    """Write the rows of cases and methods that there are, in their order, and RESULTS.md."""
    names = [f"{case.name}/{method}" for case in all_cases() for method in case.methods]
    rows = {name: rows[name] for name in names if name in rows}
    write(SCORES, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    write(REPORT, report(REPORT.read_text(encoding="utf-8"), rows))


def report(text: str, rows: dict[str, dict]) -> str:
    """Return RESULTS.md with its tables anew."""
    tables = {
        "weights": weights_table,
        "paper": lambda: paper_table(rows),
        "rows": lambda: rows_table(rows),
        **{task: lambda task=task: task_table(task, rows) for task in TASKS},
    }
    missing = tables.keys() - {match[2] for match in TABLE.finditer(text)}
    if missing:
        raise InputError(f"{REPORT}: has no place for {', '.join(sorted(missing))}")
    return TABLE.sub(lambda match: f"{match[1]}{tables[match[2]]()}\n{match[3]}", text)


def markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def pair(psnr: float, ssim: float) -> str:
    return f"{psnr:.2f} / {ssim:.4f}"


def task_table(task: str, rows: dict[str, dict]) -> str:
    """Return methods by data sets: PSNR / SSIM, and the least gain of an image."""
    cases = [case for case in all_cases() if case.task == task]
    columns = list(dict.fromkeys(case.data for case in cases))
    table: dict[str, dict[str, dict]] = {}
    for case in sorted(cases, key=lambda case: case.ratio):
        for method in case.methods:
            label = f"{case.ratio} %, {method}" if case.ratio else method
            if row := rows.get(f"{case.name}/{method}"):
                table.setdefault(label, {})[case.data] = row
    head = ["", *(text for name in columns for text in (name.replace("_", ", "), "least gain"))]
    lines = []
    for label, cells in table.items():
        line = [f"**{label}**" if label.endswith(OURS) else label]
        for name in columns:
            row = cells.get(name)
            line.append(pair(row["psnr"], row["ssim"]) if row else "–")
            line.append(f"{row['least_gain']:+.2f}" if row and "on" in row else "")
        lines.append(line)
    return markdown(head, lines) if lines else "(not measured yet)"


def paper_table(rows: dict[str, dict]) -> str:
    """Return the paper's table of compressive sensing with our rows beside it."""
    head = ["ratio", *(f"{name} {whose}" for name in SETS for whose in (*MODELS, "ours"))]
    lines = []
    for ratio in RATIOS:
        line = []
        for name in SETS:
            for model in MODELS:
                published = published_scores("Compressive_Sensing", model).get(f"{name}_{ratio}")
                line.append(pair(*published) if published else "–")
            ours = rows.get(f"Compressive_Sensing_{ratio}/{name}/{OURS}")
            line.append(f"**{pair(ours['psnr'], ours['ssim'])}**" if ours else "–")
        if set(line) != {"–"}:
            lines.append([f"{ratio} %", *line])
    return markdown(head, lines)


def weights_table() -> str:
    """Return what ships, as the JSON files beside the weights say."""
    head = ["file", "SHA-256", "MB", "trained on", "patches", "minutes", "hardware", "commit"]
    lines = []
    for task in TASKS:
        for file in sorted((ROOT / task / "pretrained_models").glob("*.safetensors")):
            record = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
            made = record["training"]
            measured = f"{record['cs_ratio']} % measured" if "cs_ratio" in record else ""
            data = f"{made['data'].partition(',')[0]}, {made.get('degradation', measured)}"
            lines.append(
                [
                    f"[{task}/{file.name}]({file.relative_to(ROOT).as_posix()})",
                    f"`{sha256(file)[:12]}`",
                    f"{file.stat().st_size / 1e6:.1f}",
                    data,
                    f"{made['patches']:,} × {made['patch_size']}²",
                    f"{made['minutes']:g}",
                    made["hardware"],
                    made["commit"],
                ]
            )
    return markdown(head, lines)


def rows_table(rows: dict[str, dict]) -> str:
    """Return everything that is written down about each row."""
    head = ["row", "images", "PSNR (dB)", "SSIM", "least gain (dB)", "protocol"]
    head += ["weights, or made with", "CPU (s)", "commit"]
    lines = []
    for name, row in rows.items():
        gain = f"{row['least_gain']:+.2f} on {row['on']}" if "on" in row else ""
        made_with = [f"`{row['sha256'][:12]}`"] if "sha256" in row else []
        made_with += [f"{package} {row[package]}" for package in PACKAGES if package in row]
        line = [name, str(row["images"]), f"{row['psnr']:.3f}", f"{row['ssim']:.4f}", gain]
        line += [row["protocol"], ", ".join(made_with), f"{row['cpu_seconds']:.0f}", row["commit"]]
        lines.append(line)
    return markdown(head, lines)


def installed(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


def why_not(case: Case, name: str, row: dict | None, options: argparse.Namespace) -> str:
    """Return why a row is not measured or checked now; nothing if it is to be."""
    method = name.rpartition("/")[2]
    if options.only and options.only not in name:
        return NOT_ASKED
    if case.folder and not options.data:
        return f"needs --data DIR with {case.folder}"
    if method in NEEDS and not installed(NEEDS[method]):
        return f"needs {NEEDS[method]}"
    if options.write:
        current = row and row.get("sha256", "") in ("", sha256(case.weights))
        return WRITTEN if current and not options.only else ""
    if not row:
        return "has no score written yet"
    if row["cpu_seconds"] > SLOW and not (options.slow or options.only):
        return f"takes {row['cpu_seconds'] / 60:.0f} minutes (--slow)"
    return ""


def run(options: argparse.Namespace) -> list[str]:
    """Measure, and write or compare; return a line for each number that is not what is written."""
    rows, wrong, left_out = read_rows(), [], []
    cases = all_cases()
    if not options.write:
        text = REPORT.read_text(encoding="utf-8")
        if report(text, rows) != text:
            wrong.append(f"{REPORT.name}: its tables are not those of {SCORES.name} (--write)")
        known = {f"{case.name}/{method}" for case in cases for method in case.methods}
        wrong += [
            f"{name}: is in {SCORES.name}, but cannot be made" for name in rows.keys() - known
        ]
    for case in cases:
        names = [f"{case.name}/{method}" for method in case.methods]
        reasons = {name: why_not(case, name, rows.get(name), options) for name in names}
        left_out += [f"{name}: {why}" for name, why in reasons.items() if why not in UNTOLD]
        if all(reasons.values()):
            continue
        samples = case.samples(options.data)
        first = next(iter(case.methods))
        before, seconds = score(case, samples, first, options.jobs)
        for name in (name for name in names if not reasons[name]):
            method = name.rpartition("/")[2]
            scores = before
            if method != first:
                scores, seconds = score(case, samples, method, options.jobs)
            found = summary(scores, before)
            gain = (
                f", least gain {found['least_gain']:+.2f} dB on {found['on']}"
                if "on" in found
                else ""
            )
            figures = pair(found["psnr"], found["ssim"])
            print(f"{name}: {figures}{gain}; {seconds:.0f} s of CPU", flush=True)
            if options.write:
                rows[name] = {**found, **circumstances(case, method, seconds)}
                write_rows(rows)
                continue
            expected = rows[name]
            if expected.get("sha256", "") not in ("", sha256(case.weights)):
                wrong.append(f"{name}: {case.weights} is not the file that was scored (--write)")
            wrong += differences(name, found, expected)
    if options.write:
        write_rows(rows)
    if left_out:
        done = "measured" if options.write else "recomputed"
        print("\n".join([f"\nnot {done}:", *left_out]))
    return wrong


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="holds CBSD68, Set11, BSD68")
    add("--write", action="store_true", help="write what is new into scores.json and RESULTS.md")
    add("--only", default="", metavar="TEXT", help="only rows whose name has this in it")
    add("--slow", action="store_true", help=f"check rows of more than {SLOW} s of CPU, too")
    add("--jobs", type=int, default=-1, help="images at a time (default: one per core)")
    return parser.parse_args(arguments)


@command
def main(arguments: list[str] | None = None) -> None:
    if wrong := run(parse_arguments(arguments)):
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
