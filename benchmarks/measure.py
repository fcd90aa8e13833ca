"""What the benchmarks share: the machine and its ceilings, timing, peak memory, photographs, files.

    python benchmarks/measure.py

puts the tables of benchmarks/results/ into benchmarks/README.md, between the comments that name
them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from loader import commit, processor
from torch import Tensor

from dgunet.base.files import write_atomically
from dgunet.data.degradations import degrade, pair_generator
from dgunet.images.files import list_images, pad_bottom_right, read_gray, read_rgb, to_tensor
from dgunet.tools.synthesize import bundled_photos

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent / "README.md"
INCLUDED = re.compile(r"(<!-- results/(\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
DEGRADATIONS = {
    "Deblurring": "blur_mild",
    "Deraining": "rain_medium",
    "Denoising": "gaussian25",
    "Compressive_Sensing": None,  # it measures the clean photograph
}


def summary(values: Sequence[float]) -> dict:
    """Return the median of repeated measurements with their spread.

    >>> summary([3.0, 1.0, 2.0])
    {'median': 2.0, 'lowest': 1.0, 'highest': 3.0, 'runs': [3.0, 1.0, 2.0]}
    """
    return {
        "median": statistics.median(values),
        "lowest": min(values),
        "highest": max(values),
        "runs": list(values),
    }


def wait_for(device: torch.device) -> None:
    """Return when the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that a call takes."""
    wait_for(device)
    start = time.perf_counter()
    function()
    wait_for(device)
    return time.perf_counter() - start


def interleaved(
    functions: dict[str, Callable[[], object]],
    device: torch.device,
    runs: int,
    limit: float = 60,
    least: int = 3,
) -> dict[str, dict]:
    """Time the functions in turn, A B C A B C …, so that a machine that slows down does so for all.
    Call them once before, to warm up.

    Args:
        runs: rounds, at most; there are at least `least` (or `runs`, if that is less), and no more
            after `limit` seconds.

    Returns:
        {name: the `summary` of its seconds}
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    start = time.perf_counter()
    for number in range(runs):
        if number >= least and time.perf_counter() - start > limit:
            break
        for name, function in functions.items():
            seconds[name].append(timed(function, device))
    return {name: summary(of_function) for name, of_function in seconds.items()}


def ratios(reference: dict, other: dict) -> dict:
    """Return the `summary` of how many times faster another variant is, run by run: neighbours in
    time, so that what slows the machine down counts for both."""
    pairs = zip(reference["runs"], other["runs"], strict=True)
    return summary([slow / fast for slow, fast in pairs])


@contextlib.contextmanager
def tf32(enabled: bool | None):
    """Let CUDA compute float32 products and convolutions in TF32, or not; None: as PyTorch does
    where nothing is said (convolutions only)."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32, cudnn.allow_tf32 = (False, True) if enabled is None else (enabled, enabled)
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def machine(device: torch.device) -> dict:
    """Return what a figure depends on beside the code."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "device": name,
        "type": device.type,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def machine_line(found: dict) -> str:
    """Return a machine in words."""
    of_cpu = f", {found['cores']} cores, {found['threads']} threads" * (found["type"] == "cpu")
    return (
        f"{found['device']}{of_cpu}; torch {found['torch']}, Python {found['python']}; commit "
        f"{found['commit']}, {found['date']}; load before it began {found['load']:.1f}."
    )


def ceilings(device: torch.device, size: int = 2048, runs: int = 5) -> dict[str, dict]:
    """Return the most that the machine does: products of size×size matrices, in GFLOP/s, for each
    precision, and copying within its memory, in GB/s read and written, each as a `summary`."""
    dtypes = {"float32": torch.float32, "bf16": torch.bfloat16}
    if device.type == "cuda":
        dtypes["fp16"] = torch.float16
        size *= 4
    matrices = {name: torch.rand(size, size, device=device).to(d) for name, d in dtypes.items()}
    memory = torch.zeros(16 * size * size, device=device)
    copy = torch.empty_like(memory)
    functions: dict[str, Callable] = {n: lambda m=m: torch.mm(m, m) for n, m in matrices.items()}
    if device.type == "cuda":

        def with_tf32() -> None:
            with tf32(True):
                torch.mm(matrices["float32"], matrices["float32"])

        functions["TF32"] = with_tf32
    functions["copy"] = lambda: copy.copy_(memory)
    with tf32(False):
        for function in functions.values():
            function()
        seconds = interleaved(functions, device, runs)
    work = dict.fromkeys(functions, 2 * size**3 / 1000000000.0)
    work["copy"] = 2 * memory.numel() * memory.element_size() / 1e9
    return {n: summary([work[n] / s for s in seconds[n]["runs"]]) for n in functions}


def run_alone(function: Callable, *arguments):
    """Return what a function of a module returns when a process of its own calls it."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def peak_memory(function: Callable[[], object], device: torch.device) -> float:
    """Return by how many MB a call raises the highest use of memory of this process (or of the
    GPU, without what is there before). Warm up before, with something small."""
    if device.type == "cuda":
        wait_for(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        wait_for(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    with contextlib.suppress(OSError):  # the highest use begins anew with what is used now
        Path("/proc/self/clear_refs").write_text("5")
    before = _highest_resident()
    function()
    return (_highest_resident() - before) / 1e6


def _highest_resident() -> int:
    # Not ru_maxrss where there is better: a new process inherits it from the one that started it.
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
    except (OSError, TypeError):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def photographs(
    task: str,
    height: int,
    width: int,
    count: int = 1,
    folder: Path | None = None,
    clean: bool = False,
) -> Tensor:
    """Return photographs as a task gets them, ×C×H×W in [0,1]: the test photographs inside
    scikit-image or those of a folder, their middle or, where they are smaller, continued by
    reflection; degraded as in `DEGRADATIONS`, unless `clean`."""
    files = list_images(folder) if folder else bundled_photos("test")
    batch = []
    for number in range(count):
        file = files[number % len(files)]
        pixels = read_gray(file) if task == "Compressive_Sensing" else read_rgb(file)
        pixels = pad_bottom_right(pixels, height, width)
        top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
        image = pixels[top : top + height, left : left + width].astype(np.float32) / 255
        if DEGRADATIONS[task] and not clean:
            rng = pair_generator(0, DEGRADATIONS[task], f"{number} {file.stem}")
            image = degrade(image, DEGRADATIONS[task], rng)
        batch.append(to_tensor(np.ascontiguousarray(image, dtype=np.float32)))
    return torch.stack(batch)


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table.

    >>> print(markdown(["a", "b"], [[1, 2]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [header, ["---"] * len(header), *rows]
    text = ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]
    return "\n".join([text[0], text[1].replace(" ", ""), *text[2:]])


def seconds_cell(spread: dict) -> str:
    """Return a median with its spread, such as `1.23 (1.20–1.31)`."""
    digits = max(0, 2 - int(np.floor(np.log10(max(spread["median"], 1e-9)))))
    return "{median:.{d}f} ({lowest:.{d}f}–{highest:.{d}f})".format(**spread, d=min(digits, 4))


def megabytes_table(label: str, megabytes: dict[str, float]) -> str:
    """Return peaks of memory as a Markdown table, beside their share of the plain one's."""
    plain = megabytes["plain"] or float("nan")
    rows = [[name, f"{mb:,.0f}", f"{mb / plain:.0%}"] for name, mb in megabytes.items()]
    return markdown([label, "MB", "of plain"], rows)


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def fill_readme(readme: Path = README, folder: Path = RESULTS) -> list[str]:
    """Put the tables of a folder between the comments of a README that name their files, and return
    the names of those that are there. Titles of level one are left out."""
    found = []

    def included(match: re.Match) -> str:
        file = folder / match[2]
        if not file.is_file():
            return match[0]
        found.append(match[2])
        lines = file.read_text(encoding="utf-8").strip().splitlines()
        text = "\n".join(line for line in lines if not line.startswith("# ")).strip()
        return f"{match[1]}{text}\n{match[3]}"

    text = readme.read_text(encoding="utf-8")
    write_text(readme, INCLUDED.sub(included, text))
    return found


if __name__ == "__main__":
    print("included:", ", ".join(fill_readme()) or "nothing")
