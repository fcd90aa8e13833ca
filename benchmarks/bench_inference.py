"""Inference of the plain, the prepared and the published network: time, memory, pixels."""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from cost import gflop
from measure import (
    interleaved,
    markdown,
    megabytes_table,
    peak_memory,
    photographs,
    ratios,
    run_alone,
    seconds_cell,
    tf32,
)
from torch import Tensor, nn

from dgunet.base.errors import InputError
from dgunet.inference.restorer import pick_device, prepare
from dgunet.inference.tiling import is_out_of_memory
from dgunet.model.checkpoint import load_model, published_state_dict
from dgunet.model.network import Network
from dgunet.model.pretrained import default_weights
from dgunet.model.registry import MODELS, TASKS, build_model

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
TINY = {"width": 8, "width_step": 4, "last_extra": 4, "stages": 7}


@dataclass(frozen=True)
class Options:
    """What is to be measured, and how."""

    device: str = "cpu"
    threads: int = 1
    runs: int = 5
    full: bool = False
    smoke: bool = False
    compile: bool = False
    reference: Path | None = None
    data: Path | None = None

    def start(self) -> torch.device:
        """Return the device, with the number of threads set; in every process once."""
        torch.set_num_threads(self.threads)
        return pick_device(self.device)


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
        """Return the network with the weights that come along, if they are of this size, else with
        random ones: the time is the same."""
        torch.manual_seed(0)
        network = build_model(self.task, self.model, self.sizes).eval()
        try:
            trained = load_model(default_weights(self.task))[0]
        except FileNotFoundError:
            return network
        return trained if trained.config == network.config else network


@dataclass(frozen=True)
class Variant:
    """A way to run a network. `tf32` is `measure.tf32`'s; `precision` that of the convolutions."""

    precision: str = "float32"
    prepared: bool = False
    published: bool = False
    channels_last: bool = False
    tf32: bool | None = False
    compile: bool | str = False

    def build(self, network: Network, options: Options) -> Callable[[Tensor], Tensor]:
        """Return a function from images to restored ones, N×C×H×W. The network is left as it is."""
        device = next(network.parameters()).device
        dtype = HALF.get(self.precision) if not self.prepared else None
        if self.published:
            module = published(options.reference, network).to(device)
        elif self.prepared:
            precision = self.precision if self.precision in HALF else "float32"
            module = prepare(network, precision=precision, compile=self.compile)
        elif self.channels_last:
            module = copy.deepcopy(network).to(memory_format=torch.channels_last)
        else:
            module = network

        @torch.inference_mode()
        def run(image: Tensor) -> Tensor:
            if self.channels_last:
                image = image.contiguous(memory_format=torch.channels_last)
            with tf32(self.tf32), torch.autocast(device.type, dtype, enabled=dtype is not None):
                stages = module(image)
            last = stages if isinstance(stages, Tensor) else stages[0]
            return last.clone() if self.compile else last  # CUDA graphs write over their results

        return run


def variants(options: Options) -> dict[str, Variant]:
    """Return the variants to compare, the plain one first."""
    cuda = options.device.startswith("cuda")
    found = {"plain": Variant()}
    if options.reference:
        found["published code"] = Variant(published=True)
    if cuda:
        found["plain, TF32 as PyTorch sets it"] = Variant("TF32", tf32=None)
    found["plain, channels_last"] = Variant(channels_last=True)
    found["plain, channels_last, bf16 autocast"] = Variant("bf16", channels_last=True)
    found["prepared"] = Variant(prepared=True)
    if cuda:
        found["prepared, TF32"] = Variant("TF32", prepared=True, tf32=True)
        found["prepared, fp16"] = Variant("fp16", prepared=True)
    found["prepared, bf16"] = Variant("bf16", prepared=True)
    if options.compile:
        mode = "reduce-overhead" if cuda else True
        for name in ("prepared", "prepared, bf16"):
            found[f"{name}, compiled"] = replace(found[name], compile=mode)
    return found


def published(folder: Path, network: Network) -> nn.Module:
    """Return the network of a checkout of the published code, with the weights of ours.

    Raises:
        InputError: it lacks the file or the class, or the weights do not fit.
    """
    task, model = network.config["task"], network.config["model"]
    sensing = task == "Compressive_Sensing"
    file = folder / task.replace("_", "-") / f"{model}{'_deblock' * sensing}.py"
    if not file.is_file():
        raise InputError(f"--reference: {file} is missing; expected the published {task} {model}")
    if not hasattr(np, "int"):
        np.int = int  # as it was when that code was written
    spec = importlib.util.spec_from_file_location(f"published_{task}_{model}", file)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
        ratio = {"cs_ratio": network.sizes["cs_ratio"]} if sensing else {}
        reference = module.DGUNet(**({"in_c": 1, "out_c": 1} if sensing else {}), **ratio)
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
        return [
            Case("Deraining", shape=(1, 320, 480)),
            Case("Deblurring"),
            Case("Compressive_Sensing"),
        ]
    found = []
    for task in TASKS:
        height = 736 if task == "Compressive_Sensing" else 720  # a multiple of 32
        for model in MODELS:
            shapes = [(1, 256, 256), (1, height, 1280), (8, 256, 256)]
            shapes += [(1, 320, 480)] * (task == "Deraining")
            found += [Case(task, model, shape) for shape in shapes]
    return found


def psnr(first: Tensor, second: Tensor) -> float:
    """Return the PSNR in dB of one image against the other, values in [0,1]."""
    error = (first.double() - second.double()).square().mean()
    return float(-10 * error.log10())


def measure_inference(options: Options, ceilings: Mapping[str, dict]) -> list[dict]:
    """Time every case's variants. Before, the results of each are compared with the plain ones."""
    device = options.start()
    return [_measure_case(case, options, device, ceilings) for case in cases(options)]


def _measure_case(case, options, device, ceilings) -> dict:
    network = case.network().to(device)
    count, height, width = case.shape
    image = photographs(case.task, height, width, count, options.data).to(device)
    work = gflop(case.task, case.model, case.sizes, case.shape)
    functions, rows, plain = {}, {}, None
    for name, variant in variants(options).items():
        try:
            run = variant.build(network, options)
            result = run(image).float().cpu()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            rows[name] = {"failed": "out of memory"}
            continue
        plain = result if plain is None else plain
        rows[name] = {
            "precision": variant.precision,
            "largest_difference": float((result - plain).abs().max()),
            "psnr_to_plain": None if torch.equal(result, plain) else psnr(result, plain),
        }
        functions[name] = lambda run=run: run(image)
    seconds = interleaved(functions, device, options.runs, limit=60)
    for name, spread in seconds.items():
        rate = work / spread["median"]
        rows[name] |= {
            "seconds": spread,
            "times_plain": ratios(seconds["plain"], spread) if "plain" in seconds else None,
            "gflops": rate,
            "share": rate / ceilings[rows[name]["precision"]]["median"],
        }
    return {"case": str(case), **asdict(case), "gflop": work, "variants": rows}


def inference_table(results: list[dict]) -> str:
    header = [
        "variant",
        "seconds, median (lowest–highest)",
        "times plain",
        "GFLOP/s",
        "of the matrix product's",
        "largest difference",
        "PSNR to plain",
    ]
    tables = []
    for result in results:
        rows = []
        for name, row in result["variants"].items():
            if "failed" in row:
                rows.append([name, row["failed"], *[""] * 5])
                continue
            psnr_cell = "same" if row["psnr_to_plain"] is None else f"{row['psnr_to_plain']:.1f} dB"
            faster = row["times_plain"]
            rows.append(
                [
                    name,
                    seconds_cell(row["seconds"]),
                    f"{faster['median']:.2f}" if faster else "",
                    f"{row['gflops']:,.0f}",
                    f"{row['share']:.0%}",
                    f"{row['largest_difference']:.0e}",
                    psnr_cell,
                ]
            )
        tables.append(f"**{result['case']}** ({result['gflop']:,.0f} GFLOP)\n")
        tables.append(markdown(header, rows) + "\n")
    return "\n".join(tables).strip()


def measure_pixels(options: Options) -> list[dict]:
    """Score the weights that come along on photographs, in every precision."""
    device = options.start()
    size, count = (32, 1) if options.smoke else (256, 3)
    results = []
    for task in TASKS:
        try:
            network = load_model(default_weights(task))[0].to(device)
        except FileNotFoundError:
            continue
        degraded = photographs(task, size, size, count, options.data).to(device)
        target = photographs(task, size, size, count, options.data, clean=True)
        scores = {}
        for name, variant in variants(replace(options, compile=False, reference=None)).items():
            run = variant.build(network, options)
            restored = [run(image[None]).float().clamp(0, 1).cpu()[0] for image in degraded]
            values = [psnr(*pair) for pair in zip(restored, target, strict=True)]
            scores[name] = sum(values) / count
        results.append({"task": task, "weights": default_weights(task).stem, "psnr": scores})
    return results


def pixels_table(results: list[dict]) -> str:
    if not results:
        return "No weights are there."
    header = ["variant", *(f"{result['weights']} ({result['task']})" for result in results)]
    rows = []
    for name in results[0]["psnr"]:
        cells = []
        for result in results:
            plain, value = result["psnr"]["plain"], result["psnr"][name]
            cells.append(f"{value:.3f} dB" if name == "plain" else f"{value - plain:+.4f}")
        rows.append([name, *cells])
    return markdown(header, rows)


def memory_cases(options: Options) -> list[Case]:
    if options.smoke:
        return [Case("Deraining", shape=(1, 64, 64), sizes={**TINY, "stages": 3})]
    quick = Case("Deraining", shape=(1, 720, 1280), sizes={"stages": 3})
    return [quick] if not options.full else [quick, Case("Deraining", shape=(1, 720, 1280))]


def measure_memory(options: Options) -> list[dict]:
    """Measure the peak memory of every variant, each in a process of its own."""
    results = []
    for case in memory_cases(options):
        peaks = {}
        compared = variants(replace(options, compile=False))
        for name, variant in list(compared.items())[: 1 if options.smoke else None]:
            if variant.published and case.sizes.get("stages", 7) != 7:
                continue
            peaks[name] = run_alone(peak_of_inference, case, variant, options)
        results.append({"case": str(case), "megabytes": peaks})
    return results


def peak_of_inference(case: Case, variant: Variant, options: Options) -> float:
    device = options.start()
    network = case.network().to(device)
    run = variant.build(network, options)
    count, height, width = case.shape
    image = photographs(case.task, height, width, count, options.data).to(device)
    run(image[..., : network.least, : 2 * network.least])
    return peak_memory(lambda: run(image), device)


def memory_table(results: list[dict]) -> str:
    tables = []
    for result in results:
        tables.append(f"**{result['case']}**\n")
        tables.append(megabytes_table("variant", result["megabytes"]) + "\n")
    return "\n".join(tables).strip()


def profile_forward(options: Options) -> dict[str, dict[str, float]]:
    """Return the share of each operator in a forward pass, for every variant, of image restoration
    and of compressive sensing."""
    device = options.start()
    shares = {}
    for case in (cases(options)[0], cases(options)[-1]):
        network = case.network().to(device)
        image = photographs(case.task, *case.shape[1:], folder=options.data).to(device)
        for name, variant in variants(replace(options, compile=False, reference=None)).items():
            run = variant.build(network, options)
            run(image)
            shares[f"{case}: {name}"] = operator_shares(partial(run, image), device)
    return shares


def operator_shares(function: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Return {operator: its own share of the time}, of those above one percent."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    times = {event.key: getattr(event, key) for event in profile.key_averages()}
    total = sum(times.values()) or 1
    ordered = sorted(times.items(), key=lambda item: -item[1])
    return {name: time / total for name, time in ordered if time > 0.01 * total}


def profile_table(results: dict[str, dict[str, float]]) -> str:
    rows = []
    for name, shares in results.items():
        first = list(shares.items())[:7]
        listed = ", ".join(f"{op.removeprefix('aten::')} {share:.0%}" for op, share in first)
        rows.append([name, listed])
    return markdown(["what", "operators, by their own time"], rows)
