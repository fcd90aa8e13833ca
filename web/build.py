"""Build the page: a folder that any server of static files can serve.

    python web/build.py build/web

It holds the page, onnxruntime-web from node_modules, the bundled pretrained weights as ONNX, a few
example photographs with their degraded versions, and catalogue.json, which lists what is there.
Weights are exported again only if they, or the programs that export them, have changed.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from itertools import cycle
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from dgunet.base.errors import InputError, command
from dgunet.base.options import new_parser
from dgunet.data.degradations import PRESETS, describe
from dgunet.images.files import read_rgb, write_image
from dgunet.model.checkpoint import load_model
from dgunet.model.pretrained import default_weights, degradation_of, read_record
from dgunet.model.registry import task_folder
from dgunet.tools.export import export
from dgunet.tools.synthesize import bundled_photos, synthesize

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PAGE = ("index.html", "style.css", "page.js", "worker.js", "tiling.js", "degrade.js")
RUNTIME = (  # of onnxruntime-web, with WebGPU and without
    "ort.webgpu.bundle.min.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
    "ort.wasm.bundle.min.mjs",
    "ort-wasm-simd-threaded.wasm",
)
EXAMPLE_SIDE = 384  # pixels, at most
EXAMPLES = {  # of the tasks, in the page's order: label, degradation (None: a clean photograph)
    "Denoising": ("Noise", "gaussian25"),
    "Deraining": ("Rain", "rain_medium"),
    "Deblurring": ("Blur", "blur_mild"),
    "Compressive_Sensing": ("Clean", None),
}


def build(output: Path) -> None:
    """Write the page's folder. Raises `InputError` if onnxruntime-web is not installed."""
    runtime = HERE / "node_modules/onnxruntime-web/dist"
    if missing := [name for name in RUNTIME if not (runtime / name).is_file()]:
        raise InputError(f"{runtime / missing[0]}: does not exist; expected it after `npm ci`")
    shutil.rmtree(output / "examples", ignore_errors=True)
    for folder in ("ort", "networks", "examples"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    for name in PAGE:
        shutil.copyfile(HERE / name, output / name)
    for name in RUNTIME:
        shutil.copyfile(runtime / name, output / "ort" / name)

    weights = [
        (path, record)
        for task in EXAMPLES
        for path in sorted(task_folder(task).glob("pretrained_models/*.safetensors"))
        if (record := read_record(path))
    ]
    catalogue = {
        "networks": [network(path, record, output) for path, record in weights],
        "presets": [
            {"name": name, "kind": type(preset).__name__, "label": describe(name), **asdict(preset)}
            for name, preset in PRESETS.items()
        ],
        "examples": [
            example(task, photo, output)
            for task, photo in zip(EXAMPLES, cycle(bundled_photos("test")), strict=False)
        ],
    }
    text = json.dumps(catalogue, indent=1, ensure_ascii=False)
    (output / "catalogue.json").write_text(text, encoding="utf-8")


def network(weights: Path, record: dict, output: Path) -> dict:
    """Export weights, unless it was done before, and return what the page needs to know of them."""
    folder = output / "networks"
    files = sorted(folder.glob(f"{weights.stem}*.onnx"))  # _measure comes before _reconstruct
    sources = [weights, Path(__file__), ROOT / "dgunet/tools/export.py"]
    sources += [*ROOT.glob("dgunet/model/*.py"), *ROOT.glob("*/DGUNet.py")]
    newest = max(source.stat().st_mtime for source in sources)
    if not files or files[0].stat().st_mtime < newest:
        print(f"exporting {weights.stem}", flush=True)
        files = export(weights, folder / f"{weights.stem}.onnx")
        for file in files:
            pad_channels(file)
    metadata = {entry.key: entry.value for entry in onnx.load(files[0]).metadata_props}
    return {
        "name": weights.stem,
        "task": metadata["task"],
        "model": metadata["model"],
        "default": weights == default_weights(metadata["task"]),
        "degradation": degradation_of(record),
        "label": metadata["degradation"],
        "channels": 1 if "cs_ratio" in record else 3,
        "sizes": json.loads(metadata["sizes"]),
        "multiple_of": int(metadata["multiple_of"]),
        "min_long_side": int(metadata["min_long_side"]),
        "padding": metadata["padding"],
        "files": [file.relative_to(output).as_posix() for file in files],
        "check": check(weights),
        "bytes": sum(file.stat().st_size for file in files),
    }


def check(weights: Path) -> list[float]:
    """Return every 61st value that a network restores of a pattern of 64×64 pixels: worker.js does
    not use a graphics card that computes others."""
    model, _ = load_model(weights)
    pattern = torch.arange(model.channels * 64 * 64) * 7919 % 256 / 255
    with torch.inference_mode():
        restored = model.eval()(pattern.reshape(1, -1, 64, 64))[0]
    return [round(value, 5) for value in restored.flatten()[::61].tolist()]


def pad_channels(path: Path) -> None:
    """Rewrite a graph for WebGPU: convolutions larger than 1×1 with 6, 9, 15, … input channels
    (multiples of 3, not of 4) and a multiple of 4 output channels get input channels of zeros, up
    to a multiple of 4. onnxruntime-web 1.30 computes them wrongly (its issue 29651)."""
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes, added = [], {}
    for node in model.graph.node:
        shape = tensors[node.input[1]].dims if node.op_type == "Conv" else (1, 1, 1, 1)
        outputs, channels, height, width = shape
        wrong = channels > 3 and channels % 3 == 0 and channels % 4 and outputs % 4 == 0
        if wrong and height * width > 1:
            extra = -channels % 4
            image, kernel, pads = node.input[0], f"{node.input[1]}_padded", f"pads_{extra}"
            values = numpy_helper.to_array(tensors[node.input[1]])
            values = np.pad(values, [(0, 0), (0, extra), (0, 0), (0, 0)])
            added[kernel] = numpy_helper.from_array(values, kernel)
            added[pads] = numpy_helper.from_array(np.array([0, 0, 0, 0, 0, extra, 0, 0]), pads)
            nodes.append(helper.make_node("Pad", [image, pads], [f"{node.name}_padded"]))
            node.input[0], node.input[1] = f"{node.name}_padded", kernel
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(added.values())
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def example(task: str, photo: Path, output: Path) -> dict:
    """Write a task's example, a degraded photograph and the clean one, and return its entry."""
    label, degradation = EXAMPLES[task]
    folder, name = output / "examples" / task, f"{photo.stem}.png"
    if degradation:
        synthesize(degradation, folder, [photo], max_side=EXAMPLE_SIDE, jobs=1)
        title = describe(degradation)
    else:
        pixels = read_rgb(photo)[:EXAMPLE_SIDE, :EXAMPLE_SIDE]
        write_image(folder / "input" / name, pixels)
        write_image(folder / "target" / name, pixels)
        title = "a clean picture, to be measured"
    paths = {kind: f"examples/{task}/{kind}/{name}" for kind in ("input", "target")}
    return {"name": name, "task": task, "label": label, "title": title, **paths}


@command
def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("output", type=Path, help="the folder to write")
    build(parser.parse_args().output)


if __name__ == "__main__":
    main()
