"""How fast exported networks run in onnxruntime, beside PyTorch on the same threads.

    python benchmarks/bench_onnx.py --threads 1 --runs 5

Each task's bundled network, in float32, on one 256×256 image. It prints the table that is in
docs/export.md. Variants take turns, as in bench.py.
"""

import tempfile
from pathlib import Path

import onnxruntime
import torch
from measure import Options, interleaved, speed_up
from report import make_parser, spread, table

from dgunet.base.errors import command
from dgunet.inference.optimize import optimize_for_inference
from dgunet.model.checkpoint import load_model
from dgunet.model.pretrained import default_weights
from dgunet.model.registry import DEFAULT_WEIGHTS
from dgunet.tools.export import export


def onnx_function(files: list[Path], image: torch.Tensor, threads: int):
    """Return a call of exported files that computes the last stage's image only."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    providers = ["CPUExecutionProvider"]
    sessions = [onnxruntime.InferenceSession(file, options, providers) for file in files]

    def run() -> None:
        values = image.numpy()
        for session in sessions:
            last = session.get_outputs()[-1].name
            (values,) = session.run([last], {session.get_inputs()[0].name: values})

    return run


def measure_task(task: str, options: Options) -> dict:
    """Return a row of the table."""
    weights = default_weights(task)
    network, _ = load_model(weights)
    optimized = optimize_for_inference(network)
    image = torch.rand(1, network.channels, 256, 256)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        files = export(weights, Path(folder) / "network.onnx")
        functions = {
            "PyTorch": lambda: network(image),
            "optimised": lambda: optimized(image),
            "onnxruntime": onnx_function(files, image, options.threads),
        }
        found = interleaved(functions, options)
    columns = {f"{name}, s": spread(seconds) for name, seconds in found.items()}
    gain = speed_up(found["PyTorch"], found["onnxruntime"])
    return {"weights": weights.stem, **columns, "speed-up over PyTorch": gain}


@command
def main() -> None:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--threads", type=int, default=1, metavar="N", help="of both (default: %(default)s)")
    add("--runs", type=int, default=5, metavar="N", help="rounds (default: %(default)s)")
    options = Options(**vars(parser.parse_args()))
    options.start()
    print(table([measure_task(task, options) for task in DEFAULT_WEIGHTS]))


if __name__ == "__main__":
    main()
