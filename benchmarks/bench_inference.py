"""Inference of the plain, the optimised and the published network: time, accuracy, memory, and how
both grow with the image, the stages, the width and the batch."""

from __future__ import annotations

import importlib.util
import math
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measure import (
    Options,
    interleaved,
    peak_memory,
    photographs,
    precision_of,
    run_alone,
    speed_up,
    work,
)
from report import spread
from torch import Tensor, nn

from dgunet.base.errors import InputError
from dgunet.images.psnr import psnr
from dgunet.inference.device import tf32
from dgunet.inference.memory import is_out_of_memory, keep_freed_memory
from dgunet.inference.optimize import optimize_for_inference
from dgunet.inference.restorer import Restorer
from dgunet.model.checkpoint import load_model
from dgunet.model.network import Network
from dgunet.model.pretrained import default_weights
from dgunet.model.published_format import published_state_dict
from dgunet.model.registry import MODELS, TASKS, build_model
from dgunet.tools.export import export

SMALL = {"width": 20, "width_step": 10, "last_extra": 8, "stages": 3}  # of mixed.yml and small.yml
TINY = {"width": 8, "width_step": 4, "last_extra": 4, "stages": 3}
MEGAPIXELS = (0.25, 1, 4, 16)
WHOLE_TO = 4  # megapixels that are also restored without tiles


@dataclass(frozen=True)
class Case:
    """A model (`sizes` as `build_model` takes them) and N×H×W images."""

    task: str
    model: str = "DGUNet"
    shape: tuple[int, int, int] = (1, 256, 256)
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        count, height, width = self.shape
        stages = f", {self.sizes['stages']} stages" if "stages" in self.sizes else ""
        return f"{self.task} {self.model}{stages}, {f'{count} of ' * (count > 1)}{height}×{width}"

    def network(self) -> Network:
        """Return the network with random weights: the time is the same."""
        torch.manual_seed(0)
        return build_model(self.task, self.model, self.sizes).eval()

    def gflop(self) -> float:
        """Return the GFLOP of a forward pass: those on 64×64 pixels, with which they grow."""
        with torch.inference_mode():
            network = self.network()
            image = torch.zeros(1, network.channels, 64, 64)
            return work(lambda: network(image)).flop / 1e9 * math.prod(self.shape) / 64**2


def variants(options: Options) -> list[str]:
    """Return the ways to run a network that are compared, the plain one first."""
    names = ["plain", *["published code"] * bool(options.reference), "optimised", "optimised, bf16"]
    if options.cuda:
        names += ["plain, TF32", "optimised, TF32", "optimised, fp16"]
    if options.compile:
        names += ["optimised, compiled", "optimised, bf16, compiled"]
    return names


def build(variant: str, network: Network, options: Options) -> Callable[[Tensor], Tensor]:
    """Return a function from images to restored ones, N×C×H×W. The network is left as it is."""
    module, precision = network, precision_of(variant)
    compiled = "compiled" in variant
    if variant == "published code":
        module = published(options.reference, network).to(options.device)
    elif variant.startswith("optimised"):
        mode = "reduce-overhead" if options.cuda else "default"
        half = precision if precision in ("bf16", "fp16") else "float32"
        module = optimize_for_inference(network, precision=half, compile=compiled and mode)

    @torch.inference_mode()
    def run(image: Tensor) -> Tensor:
        with tf32(precision == "TF32"):
            stages = module(image)
        last = stages if isinstance(stages, Tensor) else stages[0]
        return last.clone() if compiled else last  # CUDA graphs write over their results

    return run


def published(folder: Path, network: Network) -> nn.Module:
    """Return the network of a checkout of the published code, with the weights of ours. Raises
    `InputError` if it lacks the file or the class, or the weights do not fit."""
    task, model = network.config["task"], network.config["model"]
    ratio = network.sizes.get("cs_ratio")
    file = folder / task.replace("_", "-") / f"{model}{'_deblock' if ratio else ''}.py"
    if not file.is_file():
        raise InputError(f"--reference: {file} is missing; expected the published {task} {model}")
    if not hasattr(np, "int"):
        np.int = int  # as it was when that code was written
    spec = importlib.util.spec_from_file_location(f"published_{task}_{model}", file)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
        reference = module.DGUNet(**({"in_c": 1, "out_c": 1, "cs_ratio": ratio} if ratio else {}))
        state = published_state_dict(network)
        reference.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
    except (ImportError, AttributeError, TypeError, RuntimeError) as error:
        raise InputError(f"--reference: {file}: {error}") from error
    finally:
        sys.path.remove(str(file.parent))
    return reference.eval()


def cases(options: Options) -> list[Case]:
    if options.smoke:
        sensing = Case("Compressive_Sensing", shape=(2, 32, 32), sizes=TINY)
        return [Case("Deraining", shape=(1, 16, 24), sizes=TINY), sensing]
    if not options.full:
        deraining = Case("Deraining", shape=(1, 320, 480))
        return [deraining, Case("Deblurring"), Case("Compressive_Sensing")]
    found = []
    for task in TASKS:
        height = 736 if task == "Compressive_Sensing" else 720  # a multiple of 32
        shapes = [(1, 256, 256), (1, height, 1280), (8, 256, 256)]
        found += [Case(task, model, shape) for model in MODELS for shape in shapes]
    return found


def measure_inference(options: Options, ceilings: Mapping[str, Mapping]) -> dict[str, list[dict]]:
    """Time every case's variants. Before, the results of each are compared with the plain ones."""
    return {str(case): _measure_case(case, options, ceilings) for case in cases(options)}


def _measure_case(case: Case, options: Options, ceilings: Mapping[str, Mapping]) -> list[dict]:
    device = options.start()
    network = case.network().to(device)
    image = photographs(case.task, case.shape, options.data).to(device)
    functions, results, done = {}, {}, {}
    rows = {name: {"variant": name, "seconds": "out of memory"} for name in variants(options)}
    for name in rows:
        try:
            run = build(name, network, options)
            if "compiled" not in name:
                done[name] = work(lambda run=run: run(image))
            results[name] = run(image).float().cpu()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            continue
        functions[name] = lambda run=run: run(image)
    seconds = interleaved(functions, options)
    for name, runs in seconds.items():
        row, plain = rows[name], next(iter(results.values()))
        row["seconds"] = spread(runs)
        if "plain" in seconds:
            row["speed-up"] = speed_up(seconds["plain"], runs)["median"]
        if of_call := done.get(name.removesuffix(", compiled")):
            precision = precision_of(name)
            rate = of_call.flop / row["seconds"]["median"] / 1e9
            row |= {"GFLOP/s": rate, "% of GEMM peak": 100 * rate / ceilings[precision]["median"]}
            row |= of_call.floor(ceilings, precision)
        row["largest difference"] = float((results[name] - plain).abs().max())
        row["PSNR to plain, dB"] = psnr(results[name], plain)
    return list(rows.values())


def measure_accuracy(options: Options, _ceilings: Mapping) -> dict[str, list[dict]]:
    """Score the bundled pretrained weights on photographs, in every precision."""
    device = options.start()
    shape = (1, 32, 32) if options.smoke else (3, 256, 256)
    rows = {name: {"variant": name} for name in variants(replace(options, reference=None))}
    for task in TASKS:
        network = load_model(default_weights(task))[0].to(device)
        degraded = photographs(task, shape, options.data).to(device)
        target = photographs(task, shape, options.data, clean=True)
        column, plain = f"{default_weights(task).stem} ({task})", None
        for name, row in rows.items():
            run = build(name, network, options)
            restored = run(degraded).float().clamp(0, 1).cpu()
            score = sum(psnr(*pair) for pair in zip(restored, target, strict=True)) / shape[0]
            plain = score if plain is None else plain
            row[column] = f"{score:.3f} dB" if name == "plain" else f"{score - plain:+.4f}"
    return {"PSNR of the plain network, and differences from it": list(rows.values())}


def measure_onnx(options: Options, _ceilings: Mapping) -> dict[str, list[dict]]:
    """Time the exported pretrained networks in onnxruntime, the last stage's image alone, beside
    PyTorch on as many threads."""
    import onnxruntime

    options.start()
    settings, rows = onnxruntime.SessionOptions(), []
    settings.intra_op_num_threads = options.threads
    open_session = partial(
        onnxruntime.InferenceSession, sess_options=settings, providers=["CPUExecutionProvider"]
    )
    for weights in map(default_weights, TASKS):
        network, _ = load_model(weights)
        image = torch.rand(1, network.channels, 256, 256)
        with tempfile.TemporaryDirectory() as folder:
            sessions = list(map(open_session, export(weights, Path(folder) / "network.onnx")))

        def in_onnxruntime(sessions=sessions, image=image) -> None:
            values = image.numpy()
            for session in sessions:
                last = session.get_outputs()[-1].name
                (values,) = session.run([last], {session.get_inputs()[0].name: values})

        functions = {
            name: partial(build(name, network, options), image) for name in ("plain", "optimised")
        }
        found = interleaved(functions | {"onnxruntime": in_onnxruntime}, options)
        row = {"weights": weights.stem}
        row |= {f"{name}, s": spread(seconds) for name, seconds in found.items()}
        rows.append(row | {"speed-up": speed_up(found["plain"], found["onnxruntime"])})
    return {"": rows}


def measure_memory(options: Options, _ceilings: Mapping) -> dict[str, list[dict]]:
    """Measure the peak memory of every variant, each in a process of its own."""
    case = Case("Deraining", shape=(1, 720, 1280), sizes={"stages": 3})
    if options.smoke:
        case = Case("Deraining", shape=(1, 64, 64), sizes=TINY)
    options = replace(options, compile=False, reference=None)
    peaks = {name: run_alone(_peak, case, name, options) for name in variants(options)}
    return {f"{case}, above weights and image": memory_rows(peaks)}


def _peak(case: Case, name: str, options: Options) -> float:
    device = options.start()
    run = build(name, case.network().to(device), options)
    image = photographs(case.task, case.shape, options.data).to(device)
    run(image[..., :16, :32])
    return peak_memory(lambda: run(image), device)


def memory_rows(peaks: Mapping[str, float]) -> list[dict]:
    """Return peaks of memory as a table, beside their share of the plain one's."""
    plain = peaks["plain"] or float("nan")
    return [{"variant": n, "MB": mb, "% of plain": 100 * mb / plain} for n, mb in peaks.items()]


def parameters_and_work(_options: Options, _ceilings: Mapping) -> dict[str, list[dict]]:
    """Count the parameters of every model, each once, and the GFLOP of a forward pass."""
    models = [Case(task, model) for task in TASKS for model in MODELS]
    rows = []
    for case in [*models, Case("Denoising", sizes=SMALL)]:
        with torch.device("meta"):
            network = build_model(case.task, case.model, case.sizes)
        row = {"model": "mixed.yml, small.yml" if case.sizes else f"{case.task} {case.model}"}
        row["parameters"] = sum(parameter.numel() for parameter in network.parameters())
        row["GFLOP at 256×256"] = round(case.gflop())
        rows.append(row)
    return {"": rows}


def scaling_cases(options: Options) -> dict[str, dict[float, Case]]:
    """Return {what grows: {its value: the case}}, of a small denoiser."""
    small = Case("Denoising", sizes=SMALL)
    if options.smoke:
        return {"megapixels, in tiles": {0.004: Case("Denoising", shape=(1, 48, 80), sizes=TINY)}}
    # Of the proportion 2:3, in multiples of 8.
    sides = {mp: round((mp * 1e6 / 6) ** 0.5 / 8) * 8 for mp in MEGAPIXELS}
    images = {mp: replace(small, shape=(1, 2 * side, 3 * side)) for mp, side in sides.items()}
    widths = {n: SMALL | {"width": n, "width_step": n // 2} for n in (8, 12, 20, 40, 80)}
    return {
        "megapixels, in tiles": images,
        "megapixels, whole": {mp: case for mp, case in images.items() if mp <= WHOLE_TO},
        "stages": {n: replace(small, sizes=SMALL | {"stages": n}) for n in (2, 3, 5, 7, 9)},
        "width": {n: replace(small, sizes=sizes) for n, sizes in widths.items()},
        "batch": {n: replace(small, shape=(n, 256, 256)) for n in (1, 2, 4, 8, 16)},
    }


def measure_scaling(options: Options, _ceilings: Mapping) -> dict[str, list[dict]]:
    """Measure seconds and peak memory as one thing grows, every point in a process of its own."""
    tables: dict[str, list[dict]] = {}
    for axis, points in scaling_cases(options).items():
        for value, case in points.items():
            seconds, megabytes = run_alone(_scaling_point, case, "in tiles" in axis, options)
            megapixels, gflop = math.prod(case.shape) / 1e6, case.gflop()
            row = {axis: value, "images": str(case).rpartition(", ")[2], "seconds": seconds}
            row |= {"s/MP": seconds / megapixels, "GFLOP/s": gflop / seconds}
            row |= {"MB": megabytes, "MB/MP": megabytes / megapixels}
            tables.setdefault(axis, []).append(row)
    return tables


def _scaling_point(case: Case, in_tiles: bool, options: Options) -> tuple[float, float]:
    """Return seconds and megabytes of a `Restorer`, in a process that keeps freed memory as the
    programs do."""
    device = options.start()
    keep_freed_memory()
    restorer = Restorer(case.network(), device=device, tile="auto" if in_tiles else 0)
    images = (255 * photographs(case.task, case.shape)).clamp(0, 255).byte()
    restorer(images[..., :32, :32])
    megabytes = peak_memory(lambda: restorer(images), device)
    return interleaved({"": lambda: restorer(images)}, replace(options, runs=1))[""][0], megabytes
