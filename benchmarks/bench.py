"""Measure speed and memory of this installation on this machine.

    make bench                                 in under ten minutes, on two cores
    make bench-full                            every model, also 1280×720 and batches of eight
    python benchmarks/bench.py --only inference,memory --runs 9
    python benchmarks/bench.py --only scaling  how time and memory grow with the image
    python benchmarks/bench.py --only onnx     exported networks in onnxruntime
    python benchmarks/bench.py --device cuda --compile --write
    python benchmarks/bench.py --reference DIR beside a checkout of the published code

Prints tables. With --write they also go to benchmarks/README.md, and what was measured to
benchmarks/results/bench-DEVICE.json; parts that are not measured stay there as they were. How each
figure is measured is in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import bench_inference as inference
import bench_training as training
import torch
from measure import Options, ceilings
from report import RESULTS, ROOT, fill, machine, read_json, table, write_json

from dgunet.base.errors import InputError, command
from dgunet.base.options import new_parser
from dgunet.inference.device import pick_device

README = ROOT / "benchmarks" / "README.md"


def measure_ceilings(_options: Options, ceilings: Mapping) -> dict[str, list[dict]]:
    """Return the ceilings, which every run measures, as a table."""
    names = {name: f"matrix product (GEMM), {name}, GFLOP/s" for name in ceilings}
    names["copy"] = "copying memory, GB/s read and written"
    return {"": [{"ceiling": names[name], "found": rate} for name, rate in ceilings.items()]}


# part → its title and what measures it: {caption: rows}
PARTS: dict[str, tuple[str, Callable[[Options, Mapping], dict[str, list[dict]]]]] = {
    "ceilings": ("The machine", measure_ceilings),
    "inference": ("Inference", inference.measure_inference),
    "accuracy": ("What half precision costs", inference.measure_accuracy),
    "memory": ("Peak memory of inference", inference.measure_memory),
    "training": ("Training step", training.measure_training),
    "training-memory": ("Peak memory of a training step", training.measure_training_memory),
    "loading": ("Loading, and training with it", training.measure_loading),
    "work": ("Parameters and work", inference.parameters_and_work),
    # only if asked for
    "scaling": ("Scaling", inference.measure_scaling),
    "onnx": ("Exported networks", inference.measure_onnx),
}


def report(results: Mapping[str, Mapping]) -> str:
    """Return parts as Markdown, each with the machine where that is another than before."""
    lines, last = [], None
    for part in (part for part in PARTS if part in results):
        content = results[part]
        lines.append(f"### {PARTS[part][0]}")
        if content["machine"] != last:
            last = content["machine"]
            lines.append(f"{last}.")
        for caption, rows in content["tables"].items():
            lines += [f"**{caption}**"] * bool(caption) + [table(rows)]
    return "\n\n".join(lines)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--only", metavar="PART,…", help=f"of {', '.join(PARTS)} (default: all but the last two)")
    add("--full", action="store_true", help="every model and more sizes: for a GPU or a free night")
    add("--device", default="cpu", help="cpu, cuda, cuda:N or auto (default: cpu)")
    add("--runs", type=int, default=3, metavar="N", help="rounds (default: 3)")
    threads = torch.get_num_threads()
    add("--threads", type=int, default=threads, metavar="N", help="of the CPU (%(default)s)")
    add("--compile", action="store_true", help="also the compiled network: minutes more")
    add("--reference", type=Path, metavar="DIR", help="a checkout of the published code")
    add("--data", type=Path, metavar="DIR", help="photographs (default: those of scikit-image)")
    add("--write", action="store_true", help="into benchmarks/results/ and benchmarks/README.md")
    add("--smoke", action="store_true", help="tiny, to see that it runs: the figures say nothing")
    return parser.parse_args(arguments)


@command
def main(arguments: list[str] | None = None) -> None:
    given = vars(parse_arguments(arguments))
    only, write = given.pop("only"), given.pop("write")
    parts = only.split(",") if only else list(PARTS)[:-2]
    if unknown := [part for part in parts if part not in PARTS]:
        raise InputError(f"--only: {unknown[0]!r}; expected some of {', '.join(PARTS)}")
    if given["runs"] < 1:
        raise InputError(f"--runs is {given['runs']}; expected 1 or more")
    options = Options(**given | {"device": str(pick_device(given["device"]))})
    device = options.start()
    if options.reference:
        for case in inference.cases(options):  # what is missing is said before hours have passed
            inference.published(options.reference, case.network())

    name = f"bench-{device.type}" + "-smoke" * options.smoke
    file = RESULTS / f"{name}.json"
    where, measured = machine(device, options.threads), {}
    limits = ceilings(options)
    for part in parts:
        title, measure = PARTS[part]
        print(f"{title} …", file=sys.stderr, flush=True)
        start = time.perf_counter()
        tables = measure(options, limits)
        seconds = round(time.perf_counter() - start)
        measured[part] = {"machine": where, "seconds": seconds, "tables": tables}
        if write:  # part by part: what is measured is not lost
            results = read_json(file) | {part: measured[part]}
            write_json(file, results)
            fill(README, {name: report(results)})
    print(report(measured))


if __name__ == "__main__":
    main()
