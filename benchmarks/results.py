"""Measure the scores in RESULTS.md, or check that they are what is written there.

    make results                 check those on the photographs inside scikit-image
    make results DATA=DIR        and those on DIR/CBSD68 and DIR/Set11, clean photographs
    python benchmarks/results.py --data DIR --slow
                                 all, however long they take (BSD68 and BM3D)
    python benchmarks/results.py --data DIR --write
                                 measure what is new, or whose weights are, and write it down
    python benchmarks/results.py --data DIR --only Denoising/CBSD68 [--write]
                                 the rows whose name has this in it; with --write measured again

A number that differs by more than 0.02 dB (0.0005 of SSIM) from what is written ends the program
with exit code 1 and a line on each. The numbers are in benchmarks/results/scores.json, and
RESULTS.md's tables are made of them.

Which weights there are, and on which degradations they are scored, is read from the JSON records
beside them (TASK/pretrained_models). A row is named task/data/condition/method. The condition is
the preset that degraded the images, as `python -m dgunet.tools.synthesize PRESET` does (seed 0, 8
bits; "unclipped": float noise, as of Denoising/test.py --sigma), or the ratio of compressive
sensing. The methods without learning are in baselines.py.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import baselines
import numpy as np
import report
import torch
from joblib import Parallel, delayed

from dgunet.base.errors import command
from dgunet.base.files import sha256
from dgunet.base.options import new_parser
from dgunet.data.degradations import PRESETS, Noise, degrade, pair_generator
from dgunet.images.files import list_images, middle, read_gray, read_rgb, to_uint8
from dgunet.inference.restorer import Restorer
from dgunet.model.pretrained import bundled_weights, degradation_of, trained_noise
from dgunet.model.registry import TASKS, task_module
from dgunet.scoring.evaluate import Benchmark
from dgunet.scoring.protocols import PROTOCOLS, Score, mean_score
from dgunet.tools.synthesize import bundled_photos

SCORES = report.RESULTS / "scores.json"
TOLERANCES = {"psnr": 0.02, "least_gain": 0.02, "ssim": 0.0005}  # dB, dB, 1
SLOW = 180  # seconds of CPU, beyond which a row is only checked with --slow
PHOTOS, LARGEST = "photographs", 512  # scikit-image's, of which the middle, at most so many pixels
UNCLIPPED = "_unclipped"
SENSING = "Compressive_Sensing"
DATA = {
    "Deblurring": (PHOTOS, "CBSD68"),
    "Deraining": (PHOTOS, "CBSD68"),
    "Denoising": (PHOTOS, "CBSD68", "CBSD68" + UNCLIPPED),
    SENSING: (PHOTOS, "Set11", "BSD68"),
}
BM3D = "BM3D"  # not installed with this project; it aborts when two threads call it
NOT_ASKED, WRITTEN = "not asked for", "written already"


@dataclass(frozen=True)
class Sample:
    """An image: `degraded` float32 about [0,1], H×W×3, in compressive sensing the target itself,
    H×W; `target` uint8."""

    name: str
    degraded: np.ndarray
    target: np.ndarray


@dataclass(frozen=True)
class Case:
    """Images of one kind, which several methods restore."""

    task: str
    data: str
    condition: str
    weights: tuple[Path, ...]

    def row(self, method: str) -> str:
        """Return the name of the row of a method."""
        return f"{self.task}/{self.data}/{self.condition}/{method}"

    @property
    def folder(self) -> str:
        """The folder of the photographs in --data; empty for scikit-image's."""
        return "" if self.data == PHOTOS else self.data.removesuffix(UNCLIPPED)

    @functools.cached_property
    def methods(self) -> dict[str, Callable[[Sample], np.ndarray]]:
        """What makes an image of a sample, by name; the first is what gains are counted from."""
        networks = {p.stem: lambda s, p=p: restorer(p)(s.degraded) for p in self.weights}
        if self.task == SENSING:

            def reconstruct(sample: Sample, method: str) -> np.ndarray:
                network = restorer(self.weights[0]).network
                return baselines.reconstruct(method, network, sample.degraded)

            others = {m: lambda s, m=m: reconstruct(s, m) for m in baselines.RECONSTRUCTIONS}
            return others | networks
        methods = {"input": lambda s: s.degraded, **baselines.restorations(self.condition)}
        methods |= networks
        return {name: lambda s, f=method: to_uint8(f(s)) for name, method in methods.items()}

    def samples(self, data: Path | None) -> Iterator[Sample]:
        """Yield the degraded images and their targets."""
        for path in list_images(data / self.folder) if self.folder else bundled_photos():
            target = read_gray(path) if self.task == SENSING else read_rgb(path)
            if not self.folder:
                target = np.ascontiguousarray(middle(target, LARGEST, LARGEST))
            image = target / np.float32(255)
            if self.task != SENSING:
                image = degrade(image, self.condition, pair_generator(0, self.condition, path.stem))
                if not self.data.endswith(UNCLIPPED):
                    image = to_uint8(image) / np.float32(255)
            yield Sample(path.stem, image, target)

    def weights_of(self, method: str) -> Path | None:
        """Return the weights that a method's results depend on: in compressive sensing all do."""
        others = self.weights[0] if self.task == SENSING else None
        return {path.stem: path for path in self.weights}.get(method, others)


@functools.cache
def restorer(weights: Path) -> Restorer:
    return Restorer.from_checkpoint(weights, device="cpu", tile=0)


def benchmark(task: str) -> Benchmark:
    return task_module(task, "evaluate").BENCHMARK


def conditions(record: Mapping) -> list[str]:
    """Return what weights are scored on: their ratio of compressive sensing, or the presets in the
    mixture of degradations that they were trained on (`clean` photographs have no score), and of a
    range of noise all in it.

    >>> conditions({"sizes": {}, "training": {"degradation": "rain_light+rain_heavy+clean"}})
    ['rain_light', 'rain_heavy']
    >>> conditions({"sizes": {}, "training": {"degradation": "gaussian0-50"}})
    ['gaussian15', 'gaussian25', 'gaussian50']
    """
    if ratio := record["sizes"].get("cs_ratio"):
        return [f"{ratio}%"]
    named = (degradation_of(record) or "").split("+")
    low, high = trained_noise(record) or (0, 0)
    noise = {n: p.sigma for n, p in PRESETS.items() if isinstance(p, Noise) and not p.shot}
    return [n for n in PRESETS if n in named or (n in noise and low <= noise[n] <= high)]


def records() -> dict[Path, dict]:
    """Return the bundled pretrained weights with their records."""
    files = bundled_weights().values()
    return {file: report.read_json(file.with_suffix(".json")) for file in files}


def all_cases() -> list[Case]:
    """Return what the bundled pretrained weights are scored on."""
    found: dict[tuple[str, str, str], list[Path]] = {}
    for weights, record in records().items():
        for condition in conditions(record):
            for data in DATA[record["task"]]:
                found.setdefault((record["task"], data, condition), []).append(weights)
    return [Case(*key, tuple(weights)) for key, weights in found.items()]


def measure(case: Case, samples: list[Sample], method: str, jobs: int) -> tuple[list[Score], float]:
    """Return the scores of the images that a method makes, and the seconds of CPU it took."""
    protocol, restore = PROTOCOLS[benchmark(case.task).protocol], case.methods[method]

    def score_one(sample: Sample) -> Score:
        return Score(sample.name, *protocol(restore(sample), sample.target))

    start = time.process_time()
    parallel = Parallel(n_jobs=1 if method == BM3D else jobs, prefer="threads")
    scores = parallel(delayed(score_one)(sample) for sample in samples)
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
    if weights := case.weights_of(method):
        made_by = {"weights": str(weights.relative_to(report.ROOT)), "sha256": sha256(weights)}
        made_by["torch"] = torch.__version__
    elif method != "input":
        package = "bm3d" if method == BM3D else "scikit-image"
        made_by[package] = importlib.metadata.version(package)
    return {
        "protocol": benchmark(case.task).protocol,
        **made_by,
        "cpu_seconds": round(seconds, 1),
        "hardware": report.processor(),
        "commit": report.commit(),
    }


def differences(name: str, found: Mapping, expected: Mapping) -> list[str]:
    """Return a line for each number that is not what is written.

    >>> differences("a/b/c", {"psnr": 30.5, "ssim": 0.9}, {"psnr": 30.53, "ssim": 0.9})
    ['a/b/c: psnr is 30.5000, expected 30.5300']
    """
    return [
        f"{name}: {key} is {found[key]:.4f}, expected {expected[key]:.4f}"
        for key, tolerance in TOLERANCES.items()
        if key in found and not abs(found[key] - expected[key]) <= tolerance
    ]


def write(rows: Mapping[str, Mapping], cases: list[Case]) -> None:
    """Write the rows of cases and methods that there are, in their order, RESULTS.md, and the
    scores on the test sets in the records of the weights."""
    names = [case.row(method) for case in cases for method in case.methods]
    rows = {name: rows[name] for name in names if name in rows}
    report.write_json(SCORES, rows)
    report.fill(report.REPORT, tables(rows, cases))
    for weights, record in records().items():  # for model cards
        scores = {}
        for case in cases:
            row = rows.get(case.row(weights.stem))
            if row and case.folder:
                before = rows.get(case.row("input"), {})
                of_set = {key: row[key] for key in ("protocol", "psnr", "ssim")}
                of_set |= {f"degraded_{k}": before[k] for k in ("psnr", "ssim") if k in before}
                scores[f"{case.data}, {case.condition}"] = of_set
        if record.get("scores") != scores:
            report.write_json(weights.with_suffix(".json"), {**record, "scores": scores})


def tables(rows: Mapping[str, Mapping], cases: list[Case]) -> dict[str, str]:
    """Return the generated parts of RESULTS.md."""
    return {"weights": weights_table(), **{task: task_table(task, rows, cases) for task in TASKS}}


def figures(row: Mapping) -> str:
    """Return PSNR in dB / SSIM, and in brackets the least gain of an image."""
    gain = f" ({row['least_gain']:+.2f})" if "on" in row else ""
    return f"{row['psnr']:.2f} / {row['ssim']:.4f}{gain}"


def task_table(task: str, rows: Mapping[str, Mapping], cases: list[Case]) -> str:
    """Return the scores by condition and method, and by data set; in compressive sensing also the
    published ones."""
    lines: dict[tuple[str, str], dict] = {}
    for case in (case for case in cases if case.task == task):
        ours = {path.stem: f"**{path.stem}**" for path in case.weights}
        found = {ours.get(m, m): rows.get(case.row(m)) for m in case.methods}
        values = {name: figures(row) if row else "–" for name, row in found.items()}
        if known := benchmark(task).sets.get(f"{case.data}_{case.condition[:-1]}"):
            for model, (psnr, ssim) in known.published.items():
                values[f"published {model}"] = f"{psnr:.2f} / {ssim:.4f}"
        for method, value in values.items():
            head = {"condition": case.condition, "method": method}
            line = lines.setdefault((case.condition, method), head)
            line[case.data.replace("_", ", ")] = value
    return report.table(list(lines.values()))


def weights_table() -> str:
    """Return the bundled pretrained weights, as their records say."""
    lines = []
    for file, record in records().items():
        made = record["training"]
        condition = made.get("degradation") or ", ".join(conditions(record))
        condition = "+".join(dict.fromkeys(condition.split("+")))  # drawn more often, listed once
        lines.append(
            {
                "file": f"[{record['task']}/{file.name}]({file.relative_to(report.ROOT)})",
                "trained on": f"{made.get('data', '').partition(',')[0]}, {condition}",
                "patches": f"{made['patches']:,} × {made['patch_size']}²",
                "minutes": f"{made['minutes']:g}" if "minutes" in made else None,
                "commit": made.get("commit"),
            }
        )
    return report.table(lines)


def why_not(case: Case, method: str, row: Mapping | None, options: argparse.Namespace) -> str:
    """Return why a row is not measured or checked now; nothing if it is to be."""
    if options.only not in case.row(method):
        return NOT_ASKED
    if case.folder and not options.data:
        return f"needs --data DIR with {case.folder}"
    if method == BM3D and not importlib.util.find_spec("bm3d"):
        return "needs bm3d"
    if options.write:
        weights = case.weights_of(method)
        current = row and row.get("sha256") == (sha256(weights) if weights else None)
        return WRITTEN if current and not options.only else ""
    if not row:
        return "has no score written yet"
    if row["cpu_seconds"] > SLOW and not (options.slow or options.only):
        return f"takes {row['cpu_seconds'] / 60:.0f} minutes (--slow)"
    return ""


def run(options: argparse.Namespace) -> list[str]:
    """Measure, and write or compare; return a line for each number that is not what is written."""
    rows, wrong, left_out, cases = report.read_json(SCORES), [], [], all_cases()
    page = report.REPORT.read_text(encoding="utf-8")
    if not options.write and report.filled(report.REPORT, tables(rows, cases)) != page:
        wrong.append(f"{report.REPORT.name}: its tables are not those of {SCORES.name} (--write)")
    for case in cases:
        why = {m: why_not(case, m, rows.get(case.row(m)), options) for m in case.methods}
        told = {m: reason for m, reason in why.items() if reason not in ("", NOT_ASKED, WRITTEN)}
        left_out += [f"{case.row(method)}: {reason}" for method, reason in told.items()]
        if all(why.values()):
            continue
        samples, before = list(case.samples(options.data)), None
        for method, reason in why.items():
            if reason and before:  # the first is always measured: gains are counted from it
                continue
            scores, seconds = measure(case, samples, method, options.jobs)
            before = before or scores
            if reason:
                continue
            name, found = case.row(method), summary(scores, before)
            print(f"{name}: {figures(found)}; {seconds:.0f} s of CPU", flush=True)
            made_by = circumstances(case, method, seconds)
            if options.write:
                rows[name] = {**found, **made_by}
                write(rows, cases)
                continue
            if rows[name].get("sha256") != made_by.get("sha256"):
                file = made_by.get("weights")
                wrong.append(f"{name}: {file} is not the file that was scored (--write)")
            wrong += differences(name, found, rows[name])
    if options.write:
        write(rows, cases)
    if left_out:
        print("\n".join(["\nleft out:", *left_out]))
    return wrong


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
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
