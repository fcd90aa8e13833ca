"""The benchmarks: work against closed forms and the published figure, every part at a tiny size."""

import functools
import json
import mmap

import bench
import bench_inference
import bench_training
import measure
import pytest
import report
import torch

from dgunet.base.errors import InputError

PUBLISHED_SIZES = bench_inference.TINY | {"stages": 7}
# Stands in for a file of the published code: our network under the published names.
STAND_IN = """
from torch import nn
from dgunet.model.published_format import published_names
from dgunet.model.registry import build_model


class DGUNet(nn.Module):
    def __init__(self, in_c=3, out_c=3, **ratio):
        super().__init__()
        self.ours = build_model("{task}", "DGUNet", {sizes} | ratio)

    def load_state_dict(self, state):
        names = published_names(self.ours)
        self.ours.load_state_dict({{name: state[names[name]] for name in names}})

    def forward(self, image):
        return self.ours(image)
"""


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def one_process(monkeypatch):
    """What would have a process of its own has none: starting one takes seconds."""
    monkeypatch.setitem(bench_inference.TINY, "stages", 2)
    for module in (bench_inference, bench_training):
        monkeypatch.setattr(module, "run_alone", lambda function, *given: function(*given))


@pytest.fixture
def smoke(run):
    """Run the program at a tiny size; return what it prints."""
    return functools.partial(run, bench, "--smoke", "--threads", 1, "--runs", 1)


def test_peak_memory_is_that_of_the_call():
    def hold(megabytes):
        with mmap.mmap(-1, megabytes * 10**6) as memory:  # given back at once, unlike malloc's
            memory[:: mmap.PAGESIZE] = bytes(len(range(0, len(memory), mmap.PAGESIZE)))

    hold(300)  # a higher peak before does not count
    assert 95 < measure.peak_memory(lambda: hold(100), torch.device("cpu")) < 115


def test_work_counts_operations_and_bytes():
    a, b = torch.rand(10, 20), torch.rand(20, 30)
    done = measure.work(lambda: torch.mm(a, b).view(-1).add_(1))
    assert done.flop == 2 * 10 * 20 * 30
    product = 4 * (10 * 20 + 20 * 30 + 10 * 30)
    assert done.bytes == product + 4 * 2 * 300  # the view moves nothing


def test_work_of_a_network_is_the_known_one():
    assert bench_inference.Case("Deraining", shape=(1, 320, 480)).gflop() == pytest.approx(
        909, rel=0.005
    )


def test_every_part_is_measured_and_written(one_process, tmp_path, smoke, monkeypatch):
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    monkeypatch.setattr(bench, "README", tmp_path / "README.md")
    page = "<!-- begin: bench-cpu-smoke -->\n{}<!-- end: bench-cpu-smoke -->\nafter\n"
    bench.README.write_text(page.format("old\n"))
    kept = {"machine": "another", "seconds": 1, "tables": {"": [{"model": "any"}]}}
    report.write_json(tmp_path / "bench-cpu-smoke.json", {"work": kept})
    parts = [part for part in bench.PARTS if part not in ("work", "onnx")]  # which take long
    printed = smoke("--only", ",".join(parts), "--write")
    results = json.loads((tmp_path / "bench-cpu-smoke.json").read_text())
    assert results["work"] == kept  # parts that were not measured stay
    for row in results["ceilings"]["tables"][""]:
        assert 0 < row["found"]["lowest"] <= row["found"]["median"] <= row["found"]["highest"]
    for rows in results["inference"]["tables"].values():
        plain, optimised, half = rows
        assert plain["speed-up"] == 1
        assert optimised["largest difference"] < 1e-5
        assert 0 < half["largest difference"] < 0.1
    for plain, ours, _, checkpointed in results["training"]["tables"].values():
        assert plain["third loss differs by"] == 0
        assert max(row["third loss differs by"] for row in (ours, checkpointed)) < 1e-5
    assert all(f"### {bench.PARTS[part][0]}\n" in printed for part in parts)
    assert bench.README.read_text() == page.format(f"{bench.report(results)}\n")


@pytest.mark.parametrize(
    ("task", "file"),
    [
        ("Deraining", "Deraining/DGUNet.py"),
        ("Compressive_Sensing", "Compressive-Sensing/DGUNet_deblock.py"),
    ],
)
def test_the_published_code_computes_with_our_weights(task, file, tmp_path):
    case = bench_inference.Case(task, shape=(1, 32, 32), sizes=PUBLISHED_SIZES)
    network, image = case.network(), measure.photographs(task, case.shape)
    with pytest.raises(InputError, match="is missing"):
        bench_inference.published(tmp_path, network)
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text(STAND_IN.format(task=task, sizes=PUBLISHED_SIZES))
    with torch.no_grad():
        theirs = bench_inference.published(tmp_path, network)(image)[0]
        assert torch.equal(theirs, network(image)[0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "inferenze"], "inferenze"),
        (["--runs", "0"], "--runs is 0"),
        (["--reference", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(words, message, smoke):
    assert message in smoke(*words)


def test_the_readme_has_the_measured_tables():
    for file in report.RESULTS.glob("bench-*.json"):
        tables = {file.stem: bench.report(report.read_json(file))}
        text = bench.README.read_text(encoding="utf-8")
        assert report.filled(bench.README, tables) == text, "benchmarks/bench.py --write"
