"""Measure speed and memory of this installation on this machine.

    make bench                                 in under ten minutes, on two cores
    make bench-full                            every model, also 1280×720 and batches of eight
    python benchmarks/bench.py --only inference,memory --runs 9
    python benchmarks/bench.py --device cuda --compile
    python benchmarks/bench.py --reference DIR beside a checkout of the published code
    python benchmarks/bench.py --write-readme  put the tables into benchmarks/README.md

Prints Markdown tables and writes them, and all that was measured as JSON, to
benchmarks/results/bench-DEVICE.md and .json. Each figure is a median over runs with the lowest and
highest; the variants of a case take turns (A B C A B C …) in one process, after a first round that
warms up and in which their results are compared. Parts not measured stay as they were.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import bench_inference as inference
import bench_training as training
import numpy as np
import torch
from measure import (
    RESULTS,
    ceilings,
    fill_readme,
    interleaved,
    machine,
    machine_line,
    markdown,
    seconds_cell,
    write_text,
)

from dgunet.base.errors import InputError, command
from dgunet.images.files import write_image
from dgunet.inference.restorer import pick_device
from dgunet.model.pretrained import default_weights

ROOT = Path(__file__).resolve().parents[1]


def measure_startup(options: inference.Options) -> dict:
    """Time new processes: torch alone, a program's help, and one image restored."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_image(folder / "input" / "tiny.png", np.full((32, 32, 3), 128, np.uint8))
        program = [sys.executable, str(ROOT / "Deraining" / "test.py")]
        commands = {
            "import torch": [sys.executable, "-c", "import torch"],
            "test.py --help": [*program, "--help"],
        }
        try:
            weights = str(default_weights("Deraining"))
            image = ["--weights", weights, "--input_dir", str(folder), "--device", options.device]
            image += ["--result_dir", str(folder / "results"), "--overwrite"]
            commands["test.py, one image of 32×32"] = [*program, *image]
        except FileNotFoundError:
            pass

        def start(words: list[str]) -> Callable[[], object]:
            environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
            settings = {"check": True, "stdout": subprocess.DEVNULL, "cwd": ROOT}
            return lambda: subprocess.run(words, env=environment, **settings)

        functions = {name: start(words) for name, words in commands.items()}
        if options.smoke:
            help = "test.py --help"
            return interleaved({help: functions[help]}, torch.device("cpu"), 1)
        for function in functions.values():
            function()  # into the disk cache
        return interleaved(functions, torch.device("cpu"), min(3, options.runs))


def startup_table(results: dict) -> str:
    rows = [[name, seconds_cell(spread)] for name, spread in results.items()]
    return markdown(["process, from start to end", "seconds"], rows)


def ceilings_table(results: dict) -> str:
    rows = [
        [
            "copying memory, read and written" if name == "copy" else f"matrix product, {name}",
            f"{row['median']:,.0f} {'GB/s' if name == 'copy' else 'GFLOP/s'}",
            f"{row['lowest']:,.0f}–{row['highest']:,.0f}",
        ]
        for name, row in results.items()
    ]
    return markdown(["the machine's ceilings", "median", "lowest–highest"], rows)


def measure_profile(options: inference.Options) -> dict:
    return inference.profile_forward(options) | training.profile_step(options)


# part → its title, what measures it, what makes a table of that
PARTS: dict[str, tuple[str, Callable, Callable]] = {
    "inference": ("Inference", inference.measure_inference, inference.inference_table),
    "pixels": (
        "What half precision costs: PSNR, and differences from it",
        inference.measure_pixels,
        inference.pixels_table,
    ),
    "memory": (
        "Peak memory of inference, above weights and image",
        inference.measure_memory,
        inference.memory_table,
    ),
    "training": ("Training step", training.measure_training, training.training_table),
    "training-memory": (
        "Peak memory of a training step",
        training.measure_training_memory,
        training.training_memory_table,
    ),
    "loading": (
        "Loading, and training with it",
        training.measure_loading,
        training.loading_table,
    ),
    "startup": ("Start-up", measure_startup, startup_table),
    "profile": ("Where the time goes", measure_profile, inference.profile_table),
}


def report(results: dict) -> str:
    """Return all parts as Markdown, each with the machine where that is another than before."""
    lines, last = ["# Benchmarks", ""], None
    for part, content in results.items():
        if (line := machine_line(content["machine"])) != last:
            lines += [line, ""]
            last = line
        title, table = ("The machine", ceilings_table) if part == "ceilings" else PARTS[part][::2]
        seconds = f" (measured in {content['seconds']:.0f} s)" if "seconds" in content else ""
        lines += [f"### {title}", "", table(content["results"]), "", seconds.strip(), ""]
    return "\n".join(lines).replace("\n\n\n", "\n\n")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", metavar="PART,…", help=f"of {', '.join(PARTS)} (default: all)")
    add("--full", action="store_true", help="every model and more sizes: for a GPU or a free night")
    add("--device", default="cpu", help="cpu, cuda, cuda:N or auto (default: cpu)")
    add("--runs", type=int, default=5, metavar="N", help="at most, of each (default: 5)")
    add("--threads", type=int, metavar="N", help="of the CPU (default: as torch chooses)")
    add("--compile", action="store_true", help="also the compiled network: minutes more")
    add("--reference", type=Path, metavar="DIR", help="a checkout of the published code")
    add("--data", type=Path, metavar="DIR", help="photographs (default: those of scikit-image)")
    add("--output", type=Path, default=RESULTS, metavar="DIR", help="default: %(default)s")
    add(
        "--smoke", action="store_true", help="tiny, to see whether it runs: the figures say nothing"
    )
    add("--write-readme", action="store_true", help="only put the tables into README.md")
    return parser.parse_args(arguments)


@command
def main(arguments: list[str] | None = None) -> None:
    given = parse_arguments(arguments)
    if given.write_readme:
        print("included:", ", ".join(fill_readme()) or "nothing")
        return
    parts = given.only.split(",") if given.only else list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        raise InputError(f"--only: {unknown[0]!r}; expected some of {', '.join(PARTS)}")
    if given.runs < 1:
        raise InputError(f"--runs is {given.runs}; expected 1 or more")
    if given.reference and not given.reference.is_dir():
        raise InputError(f"--reference: {given.reference} is no folder")
    device = pick_device(given.device)
    options = inference.Options(
        device=str(device),
        threads=given.threads or torch.get_num_threads(),
        runs=given.runs,
        full=given.full,
        smoke=given.smoke,
        compile=given.compile,
        reference=given.reference,
        data=given.data,
    )
    options.start()
    if given.reference:
        for case in inference.cases(options):  # what is missing is said before hours have passed
            inference.published(given.reference, case.network())

    name = f"bench-{device.type}" + "-full" * given.full + "-smoke" * given.smoke
    file = given.output / f"{name}.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    where = machine(device)
    limits = ceilings(device, size=128 if given.smoke else 2048)
    first = {"ceilings": {"machine": where, "results": limits}}
    for part in parts:
        title, measure, _ = PARTS[part]
        print(f"{title} …", file=sys.stderr, flush=True)
        start = time.perf_counter()
        measured = measure(options, limits) if part == "inference" else measure(options)
        seconds = time.perf_counter() - start
        before[part] = {"machine": where, "seconds": seconds, "results": measured}
        results = first | {part: before[part] for part in PARTS if part in before}
        write_text(file, json.dumps(results, indent=1, default=str) + "\n")
        write_text(file.with_suffix(".md"), report(results))
    print(report(results))


if __name__ == "__main__":
    main()
