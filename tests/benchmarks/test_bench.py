"""The benchmarks: statistics on known numbers, work against the published figure, and every part
once at a tiny size."""

import doctest
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import bench
import bench_inference
import bench_training
import cost
import loader
import measure
import scaling

CPU = torch.device("cpu")
# The published code's place, taken by ours under the published names.
STAND_IN = """
from torch import nn
from dgunet.model.published_format import published_names
from dgunet.model.registry import build_model


class DGUNet(nn.Module):
    def __init__(self, {arguments}):
        super().__init__()
        self.ours = build_model("{task}", "DGUNet", {sizes})

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
def small_pairs(monkeypatch):
    """Training pairs of 96×128 pixels instead of 1280×720."""
    monkeypatch.setattr(loader, "HEIGHT", 96)
    monkeypatch.setattr(loader, "WIDTH", 128)
    bench_training.training_data.cache_clear()
    yield
    bench_training.training_data.cache_clear()


@pytest.fixture
def one_process(monkeypatch):
    """What would have a process of its own has none: starting one takes seconds."""
    for module in (bench_inference, bench_training, scaling):
        monkeypatch.setattr(module, "run_alone", lambda function, *given: function(*given))


@pytest.fixture
def reference(tmp_path):
    folder = tmp_path / "published"
    files = {
        "Deraining": ("Deraining/DGUNet.py", ""),
        "Compressive_Sensing": (
            "Compressive-Sensing/DGUNet_deblock.py",
            "in_c=3, out_c=3, cs_ratio=10",
        ),
    }
    for task, (file, arguments) in files.items():
        sizes = dict(bench_inference.TINY)
        (folder / file).parent.mkdir(parents=True)
        sizes |= {"cs_ratio": 25} if arguments else {}
        text = STAND_IN.format(task=task, sizes=sizes, arguments=arguments)
        (folder / file).write_text(text)
    return folder


def run(*words) -> None:
    bench.main([str(word) for word in ("--smoke", "--threads", 1, "--runs", 2, *words)])


def test_median_and_spread():
    spread = measure.summary([5.0, 1.0, 2.0, 9.0])
    assert spread == {"median": 3.5, "lowest": 1.0, "highest": 9.0, "runs": [5.0, 1.0, 2.0, 9.0]}


def test_ratios_are_of_neighbouring_runs():
    slow, fast = measure.summary([4.0, 40.0, 6.0]), measure.summary([2.0, 10.0, 2.0])
    assert measure.ratios(slow, fast)["runs"] == [2.0, 4.0, 3.0]
    assert measure.ratios(slow, fast)["median"] == 3.0


def test_variants_take_turns():
    order = []
    functions = {name: lambda name=name: order.append(name) for name in "ABC"}
    measure.interleaved(functions, CPU, runs=3)
    assert "".join(order) == "ABCABCABC"


def test_a_case_ends_at_its_limit_but_has_the_least_runs():
    seconds = measure.interleaved({"A": lambda: time.sleep(0.002)}, CPU, 9, limit=0, least=3)
    assert len(seconds["A"]["runs"]) == 3
    assert 0.002 <= seconds["A"]["lowest"] < 0.5


def test_peak_memory_is_that_of_the_call():
    """… in a process of its own, as it is measured; this one may keep what it has freed."""
    program = """
import measure, torch
def hold(megabytes):
    torch.ones(megabytes * 250_000).sum()
hold(300)  # a higher peak before does not count
print(measure.peak_memory(lambda: hold(100), torch.device("cpu")))
"""
    run = [sys.executable, "-c", program]
    folder = Path(measure.__file__).parent
    printed = subprocess.run(run, cwd=folder, capture_output=True, check=True, text=True).stdout
    assert 95 < float(printed) < 115


def test_alone_is_another_process():
    assert measure.run_alone(os.getpid) != os.getpid()


def test_work_is_the_known_one():
    assert cost.gflop("Deraining", "DGUNet", {}, (1, 320, 480)) == pytest.approx(909, abs=1)
    assert cost.parameters("Deraining", "DGUNet", {}) == 3_633_112


def test_work_is_linear_in_pixels_and_batch():
    one = cost.gflop("Denoising", "DGUNet", bench_inference.TINY, (1, 64, 64))
    four = cost.gflop("Denoising", "DGUNet", bench_inference.TINY, (2, 64, 128))
    assert four == pytest.approx(4 * one, rel=0.01)


def test_the_ceilings_are_positive():
    limits = measure.ceilings(CPU, size=64, runs=3)
    assert set(limits) == {"float32", "bf16", "copy"}
    assert all(0 < row["lowest"] <= row["median"] <= row["highest"] for row in limits.values())


def test_memory_is_compared_with_the_plain_one():
    table = measure.megabytes_table("variant", {"plain": 2000.0, "prepared": 900.0})
    assert table.splitlines()[2:] == ["| plain | 2,000 | 100% |", "| prepared | 900 | 45% |"]


@pytest.mark.parametrize(("task", "channels"), [("Deraining", 3), ("Compressive_Sensing", 1)])
def test_photographs_have_the_size_asked_for(task, channels):
    images = measure.photographs(task, 40, 600, count=2)
    assert images.shape == (2, channels, 40, 600)
    assert images.std() > 0.05 and images.min() >= 0 and images.max() <= 1
    assert torch.equal(images, measure.photographs(task, 40, 600, count=2))


def test_the_plain_step_has_the_loss_of_ours(small_pairs, tmp_path):
    options = bench_inference.Options(smoke=True)
    case = bench_training.cases(options)[0]
    data = bench_training.training_data(2)["packed file"]
    functions, _ = bench_training.steps(case, data, str(tmp_path), options)
    for _ in range(2):
        losses = {name: step() for name, step in functions.items()}
        assert losses["ours"] == pytest.approx(losses["plain"], rel=1e-5)
        assert losses["ours, stages checkpointed"] == pytest.approx(losses["plain"], rel=1e-5)


def test_every_part_runs(small_pairs, one_process, tmp_path, capsys):
    run("--output", tmp_path)
    results = json.loads((tmp_path / "bench-cpu-smoke.json").read_text())
    assert list(results) == ["ceilings", *bench.PARTS]
    for case in results["inference"]["results"]:
        rows = case["variants"]
        assert rows["plain"]["times_plain"]["median"] == 1
        assert rows["prepared"]["largest_difference"] < 1e-5
        assert 0 < rows["prepared, bf16"]["largest_difference"] < 0.1
        assert len(rows["prepared"]["seconds"]["runs"]) == 2
    assert results["memory"]["results"][0]["megabytes"]["plain"] >= 0
    printed = capsys.readouterr().out
    assert printed.strip() == (tmp_path / "bench-cpu-smoke.md").read_text().strip()
    for title, *_ in bench.PARTS.values():
        assert f"### {title}\n" in printed


def test_only_some_parts_leave_the_others(tmp_path, capsys):
    file = tmp_path / "bench-cpu-smoke.json"
    kept = {"machine": measure.machine(CPU), "results": {"import torch": measure.summary([1.5])}}
    file.write_text(json.dumps({"startup": kept}))
    run("--only", "inference", "--output", tmp_path)
    results = json.loads(file.read_text())
    assert results["startup"] == kept
    assert list(results) == ["ceilings", "inference", "startup"]


def test_the_published_code_joins_the_run(reference, tmp_path, capsys):
    run("--only", "inference", "--reference", reference, "--output", tmp_path)
    for case in json.loads((tmp_path / "bench-cpu-smoke.json").read_text())["inference"]["results"]:
        names = list(case["variants"])
        assert names[:2] == ["plain", "published code"]
        assert case["variants"]["published code"]["largest_difference"] < 1e-6


@pytest.mark.parametrize("module", [measure, scaling])
def test_the_docstrings_examples_hold(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "inferenze"], "inferenze"),
        (["--runs", "0"], "--runs is 0"),
        (["--device", "abacus"], "abacus"),
        (["--reference", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        run("--output", tmp_path, *words)
    assert exit.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_a_file_missing_from_the_published_code_is_named(reference, tmp_path, capsys):
    (reference / "Compressive-Sensing" / "DGUNet_deblock.py").unlink()
    with pytest.raises(SystemExit) as exit:
        run("--only", "inference", "--reference", reference, "--output", tmp_path)
    assert exit.value.code == 2
    error = capsys.readouterr().err.strip()
    assert "DGUNet_deblock.py is missing" in error and "\n" not in error
    assert not list(tmp_path.glob("*.json"))


def test_scaling_has_a_table_and_a_plot(one_process, tmp_path, capsys):
    scaling.main(["--smoke", "--threads", "1", "--runs", "2", "--output", str(tmp_path)])
    points = json.loads((tmp_path / "scaling-smoke.json").read_text())["points"]
    assert {point["axis"] for point in points} == set(scaling.LABELS)
    assert all(point["seconds"]["median"] > 0 for point in points)
    assert (tmp_path / "scaling-smoke.png").read_bytes().startswith(b"\x89PNG")
    assert "| megapixels, tiled |" in capsys.readouterr().out


@pytest.mark.parametrize("megapixels", scaling.MEGAPIXELS)
def test_image_sizes_have_the_megapixels(megapixels):
    height, width = scaling.image_size(megapixels)
    assert height % 8 == width % 8 == 0
    assert height * width == pytest.approx(megapixels * 1e6, rel=0.02)


def test_the_readme_gets_the_tables(tmp_path):
    readme, results = tmp_path / "README.md", tmp_path / "results"
    results.mkdir()
    (results / "here.md").write_text("# Title\n\n| a |\n|---|\n| 1 |\n")
    text = "before\n<!-- results/{}.md -->\n{}<!-- end -->\nafter\n"
    readme.write_text(text.format("here", "old\n") + text.format("missing", "kept\n"))
    expected = text.format("here", "| a |\n|---|\n| 1 |\n") + text.format("missing", "kept\n")
    for _ in range(2):  # again: no change
        assert measure.fill_readme(readme, results) == ["here.md"]
        assert readme.read_text() == expected


def test_the_readme_names_every_result():
    names = {match[2] for match in measure.INCLUDED.finditer(measure.README.read_text())}
    assert names == {"bench-cpu.md", "bench-cuda.md", "scaling.md", "cost.md"}
