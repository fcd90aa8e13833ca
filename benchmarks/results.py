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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import baselines
import numpy as np
import torch
from joblib import Parallel, delayed
from report import RESULTS, ROOT, commit, fill, filled, processor, read_json, table, write_json

from dgunet.base.errors import command
from dgunet.base.files import sha256
from dgunet.Compressive_Sensing.evaluate import TEST_SETS as SENSING_SETS
from dgunet.data.degradations import PRESETS, Noise, degrade, pair_generator
from dgunet.images.files import list_images, middle, read_gray, read_rgb, to_uint8
from dgunet.images.noise import noise_range
from dgunet.inference.restorer import Restorer
from dgunet.model.registry import TASKS
from dgunet.scoring.protocols import Score, get_protocol, mean_score
from dgunet.tools.synthesize import bundled_photos

SCORES = RESULTS / "scores.json"
REPORT = ROOT / "RESULTS.md"
TOLERANCES = {"psnr": 0.02, "least_gain": 0.02, "ssim": 0.0005}  # dB, dB, 1
SLOW = 180  # seconds of CPU, beyond which a row is only checked with --slow
PHOTOS, LARGEST = "photographs", 512  # scikit-image's, of which the middle, at most so many pixels
UNCLIPPED = "_unclipped"
SENSING = "Compressive_Sensing"
PROTOCOLS = {
    "Deblurring": "matlab_rgb",
    "Deraining": "deraining_y",
    "Denoising": "gaussian_rgb",
    SENSING: "compressive_sensing_y",
}
DATA = {
    "Deblurring": (PHOTOS, "CBSD68"),
    "Deraining": (PHOTOS, "CBSD68"),
    "Denoising": (PHOTOS, "CBSD68", "CBSD68" + UNCLIPPED),
    SENSING: (PHOTOS, "Set11", "BSD68"),
}
BM3D = "BM3D"  # not installed with this project; it aborts when two threads call it
NOT_ASKED, WRITTEN = "not asked for", "written already"

Method = Callable[["Sample"], np.ndarray]


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

    @property
    def name(self) -> str:
        return f"{self.task}/{self.data}/{self.condition}"

    @property
    def folder(self) -> str:
        """The folder of the photographs in --data; empty for scikit-image's."""
        return "" if self.data == PHOTOS else self.data.removesuffix(UNCLIPPED)

    @functools.cached_property
    def methods(self) -> dict[str, Method]:
        """What makes an image of a sample, by name; the first is what gains are counted from."""
        networks = {p.stem: lambda s, p=p: restorer(p)(s.degraded) for p in self.weights}
        if self.task == SENSING:
            others = {
                name: lambda s, m=name: baselines.reconstruct(
                    m, restorer(self.weights[0]).network, s.degraded
                )
                for name in baselines.RECONSTRUCTIONS
            }
            return others | networks
        methods = {"input": lambda s: s.degraded, **baselines.restorations(self.condition)}
        methods |= networks
        return {name: lambda s, f=method: to_uint8(f(s)) for name, method in methods.items()}

    def samples(self, data: Path | None) -> list[Sample]:
        """Return the degraded images and their targets."""
        photographs = list_images(data / self.folder) if self.folder else bundled_photos()
        return [self._sample(path) for path in photographs]

    def _sample(self, path: Path) -> Sample:
        target = read_gray(path) if self.task == SENSING else read_rgb(path)
        if not self.folder:
            target = np.ascontiguousarray(middle(target, LARGEST, LARGEST))
        image = target / np.float32(255)
        if self.task != SENSING:
            image = degrade(image, self.condition, pair_generator(0, self.condition, path.stem))
            if not self.data.endswith(UNCLIPPED):
                image = to_uint8(image) / np.float32(255)
        return Sample(path.stem, image, target)


@functools.cache
def restorer(weights: Path) -> Restorer:
    return Restorer.from_checkpoint(weights, device="cpu", tile=0)


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
    found = []
    for degradation in record["training"].get("degradation", "").split("+"):
        if levels := noise_range(degradation):
            low, high = levels
            noise = {n: p for n, p in PRESETS.items() if isinstance(p, Noise) and not p.shot}
            found += [name for name, preset in noise.items() if low <= preset.sigma <= high]
        elif degradation in PRESETS:
            found.append(degradation)
    return list(dict.fromkeys(found))


def records() -> dict[Path, dict]:
    """Return the bundled pretrained weights with their records."""
    found = {}
    for task in TASKS:
        files = sorted((ROOT / task / "pretrained_models").glob("*.json"))
        of_task = {file.with_suffix(".safetensors"): read_json(file) for file in files}
        found |= sorted(of_task.items(), key=lambda item: item[1]["sizes"].get("cs_ratio", 0))
    return found


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
    protocol, restore = get_protocol(PROTOCOLS[case.task]), case.methods[method]

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


def weights_of(case: Case, method: str) -> Path | None:
    """Return the weights that a method's results depend on: in compressive sensing all do."""
    others = case.weights[0] if case.task == SENSING else None
    return {path.stem: path for path in case.weights}.get(method, others)


def circumstances(case: Case, method: str, seconds: float) -> dict:
    """Return what else is written down about a row."""
    made_by = {}
    if weights := weights_of(case, method):
        made_by = {"weights": weights.relative_to(ROOT).as_posix(), "sha256": sha256(weights)}
        made_by["torch"] = torch.__version__
    elif method != "input":
        package = "bm3d" if method == BM3D else "scikit-image"
        made_by[package] = importlib.metadata.version(package)
    return {
        "protocol": PROTOCOLS[case.task],
        **made_by,
        "cpu_seconds": round(seconds, 1),
        "hardware": processor(),
        "commit": commit(),
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


def write(rows: Mapping[str, Mapping]) -> None:
    """Write the rows of cases and methods that there are, in their order, RESULTS.md, and the
    scores in the records of the weights."""
    names = [f"{case.name}/{method}" for case in all_cases() for method in case.methods]
    rows = {name: rows[name] for name in names if name in rows}
    write_json(SCORES, rows)
    fill(REPORT, tables(rows))
    for weights, record in records().items():  # for model cards
        scores = scores_of(weights, rows)
        if record.get("scores") != scores:
            write_json(weights.with_suffix(".json"), {**record, "scores": scores})


def scores_of(weights: Path, rows: Mapping[str, Mapping]) -> dict[str, dict]:
    """Return the scores of weights on the test sets, for their record."""
    found = {}
    for case in all_cases():
        row = rows.get(f"{case.name}/{weights.stem}")
        if row and case.folder and weights in case.weights:
            before = rows.get(f"{case.name}/input", {})
            scores = {key: row[key] for key in ("protocol", "psnr", "ssim")}
            scores |= {f"degraded_{key}": before[key] for key in ("psnr", "ssim") if key in before}
            found[f"{case.data}, {case.condition}"] = scores
    return found


def tables(rows: Mapping[str, Mapping]) -> dict[str, str]:
    """Return the generated parts of RESULTS.md."""
    return {"weights": weights_table(), **{task: task_table(task, rows) for task in TASKS}}


def figures(row: Mapping) -> str:
    """Return PSNR in dB / SSIM, and in brackets the least gain of an image."""
    gain = f" ({row['least_gain']:+.2f})" if "on" in row else ""
    return f"{row['psnr']:.2f} / {row['ssim']:.4f}{gain}"


def task_table(task: str, rows: Mapping[str, Mapping]) -> str:
    """Return the scores by condition and method, and by data set; in compressive sensing also the
    published ones."""
    lines: dict[tuple[str, str], dict] = {}
    for case in (case for case in all_cases() if case.task == task):
        ours = {path.stem: f"**{path.stem}**" for path in case.weights}
        found = {ours.get(m, m): rows.get(f"{case.name}/{m}") for m in case.methods}
        values = {name: figures(row) if row else "–" for name, row in found.items()}
        if known := SENSING_SETS.get(f"{case.data}_{case.condition[:-1]}"):
            for model, (psnr, ssim) in known.published.items():
                values[f"published {model}"] = f"{psnr:.2f} / {ssim:.4f}"
        for method, value in values.items():
            head = {"condition": case.condition, "method": method}
            line = lines.setdefault((case.condition, method), head)
            line[case.data.replace("_", ", ")] = value
    return table(list(lines.values()))


def weights_table() -> str:
    """Return the bundled pretrained weights, as their records say."""
    lines = []
    for file, record in records().items():
        made = record["training"]
        condition = made.get("degradation") or ", ".join(conditions(record))
        lines.append(
            {
                "file": f"[{record['task']}/{file.name}]({file.relative_to(ROOT).as_posix()})",
                "trained on": f"{made.get('data', '').partition(',')[0]}, {condition}",
                "patches": f"{made['patches']:,} × {made['patch_size']}²",
                "minutes": f"{made['minutes']:g}" if "minutes" in made else None,
                "commit": made.get("commit"),
            }
        )
    return table(lines)


def why_not(case: Case, method: str, row: Mapping | None, options: argparse.Namespace) -> str:
    """Return why a row is not measured or checked now; nothing if it is to be."""
    if options.only not in f"{case.name}/{method}":
        return NOT_ASKED
    if case.folder and not options.data:
        return f"needs --data DIR with {case.folder}"
    if method == BM3D and not importlib.util.find_spec("bm3d"):
        return "needs bm3d"
    if options.write:
        weights = weights_of(case, method)
        current = row and row.get("sha256") == (sha256(weights) if weights else None)
        return WRITTEN if current and not options.only else ""
    if not row:
        return "has no score written yet"
    if row["cpu_seconds"] > SLOW and not (options.slow or options.only):
        return f"takes {row['cpu_seconds'] / 60:.0f} minutes (--slow)"
    return ""


def run(options: argparse.Namespace) -> list[str]:
    """Measure, and write or compare; return a line for each number that is not what is written."""
    rows, wrong, left_out, cases = read_json(SCORES), [], [], all_cases()
    if not options.write:
        if filled(REPORT, tables(rows)) != REPORT.read_text(encoding="utf-8"):
            wrong.append(f"{REPORT.name}: its tables are not those of {SCORES.name} (--write)")
        known = {f"{case.name}/{method}" for case in cases for method in case.methods}
        wrong += [f"{n}: is in {SCORES.name}, but cannot be made" for n in rows.keys() - known]
    for case in cases:
        why = {m: why_not(case, m, rows.get(f"{case.name}/{m}"), options) for m in case.methods}
        for method, reason in why.items():
            if reason not in ("", NOT_ASKED, WRITTEN):
                left_out.append(f"{case.name}/{method}: {reason}")
        if all(why.values()):
            continue
        samples, first = case.samples(options.data), next(iter(why))
        before, seconds = measure(case, samples, first, options.jobs)
        for method in (method for method, reason in why.items() if not reason):
            scores = before
            if method != first:
                scores, seconds = measure(case, samples, method, options.jobs)
            name, found = f"{case.name}/{method}", summary(scores, before)
            print(f"{name}: {figures(found)}; {seconds:.0f} s of CPU", flush=True)
            made_by = circumstances(case, method, seconds)
            if options.write:
                rows[name] = {**found, **made_by}
                write(rows)
                continue
            if rows[name].get("sha256") != made_by.get("sha256"):
                file = made_by.get("weights")
                wrong.append(f"{name}: {file} is not the file that was scored (--write)")
            wrong += differences(name, found, rows[name])
    if options.write:
        write(rows)
    if left_out:
        print("\n".join(["\nleft out:", *left_out]))
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
