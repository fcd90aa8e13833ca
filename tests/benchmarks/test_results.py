"""The program behind RESULTS.md: what it measures, what it writes, and that it notices."""

import csv
import json
from pathlib import Path

import baselines
import numpy as np
import pytest
import report
import results
import torch
from sensing import network
from skimage import data

from dgunet.base.files import sha256
from dgunet.data.degradations import blur_in_linear_light
from dgunet.Deraining import test
from dgunet.images.files import to_uint8, write_image
from dgunet.model.checkpoint import save_checkpoint
from dgunet.tools.synthesize import synthesize

RAIN = "Deraining/CBSD68/rain_medium"


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with two photographs in CBSD68/, for results to be written to."""
    for number, left in enumerate((60, 200)):
        photo = data.chelsea()[100:164, left : left + 80]
        write_image(tmp_path / "CBSD68" / f"{number}.png", photo)
    places = "".join(
        f"<!-- begin: {k} -->\n<!-- end: {k} -->\n" for k in ("weights", *results.TASKS)
    )
    monkeypatch.setattr(report, "REPORT", tmp_path / "RESULTS.md")
    monkeypatch.setattr(results, "SCORES", tmp_path / "scores.json")
    write = report.write_json  # the weights' records, too, are written there
    monkeypatch.setattr(report, "write_json", lambda file, c: write(tmp_path / file.name, c))
    report.REPORT.write_text(f"# Results\n{places}The end.\n", encoding="utf-8")
    return tmp_path


def measure(project: Path, *arguments: str) -> None:
    results.main(["--data", str(project), "--jobs", "1", *arguments])


@pytest.fixture
def measured(project) -> Path:
    """The folder with the scores of rain written."""
    measure(project, "--only", RAIN, "--write")
    return project


def scores() -> dict:
    return json.loads(results.SCORES.read_text())


def test_tables_have_the_written_numbers():
    text = report.REPORT.read_text(encoding="utf-8")
    found = report.filled(report.REPORT, results.tables(scores(), results.all_cases()))
    assert found == text, "benchmarks/results.py --write"


def test_all_bundled_weights_are_scored_and_no_score_is_of_another_file():
    rows = scores()
    for name, row in rows.items():
        if "sha256" in row:
            assert row["sha256"] == sha256(report.ROOT / row["weights"]), name
    networks = {c.row(path.stem) for c in results.all_cases() for path in c.weights}
    assert networks <= rows.keys(), "benchmarks/results.py --data DIR --write"


def test_a_network_makes_no_image_worse():
    """But for strong blur, as RESULTS.md says: there the deblurring network before, which was not
    scored on it, made more images worse, and this one by more."""
    networks = {path.stem for path in results.records()}
    worse = {
        (name, row["on"], row["least_gain"] > -1.3)
        for name, row in scores().items()
        if name.rpartition("/")[2] in networks and row["least_gain"] <= 0
    }
    assert worse <= {("Deblurring/CBSD68/blur_strong/mixed_blur", "291000", True)}


def test_scores_are_written_checked_and_measured_again(measured, capsys):
    opening, ours = f"{RAIN}/opening", f"{RAIN}/mixed_rain"
    rows = scores()
    assert {f"{RAIN}/input", opening, ours} <= rows.keys() and rows[opening]["images"] == 2
    text = report.REPORT.read_text(encoding="utf-8")
    assert results.figures(rows[opening]) in text and text.endswith("The end.\n")
    record = json.loads((measured / "mixed_rain.json").read_text(encoding="utf-8"))
    assert record["scores"]["CBSD68, rain_medium"]["psnr"] == rows[ours]["psnr"]

    capsys.readouterr()
    measure(measured, "--only", RAIN)  # what is written is right
    assert f"{ours}: " in capsys.readouterr().out

    wrong = {
        opening: {**rows[opening], "psnr": rows[opening]["psnr"] + 0.03},
        ours: {**rows[ours], "sha256": "0" * 64},
    }
    results.SCORES.write_text(json.dumps(rows | wrong))
    with pytest.raises(SystemExit) as failure:
        measure(measured, "--only", RAIN)
    assert "RESULTS.md: its tables are not those of scores.json" in failure.value.code
    assert f"{opening}: psnr is {rows[opening]['psnr']:.4f}, expected " in failure.value.code
    assert "is not the file that was scored" in failure.value.code

    measure(measured, "--only", ours, "--write")
    assert scores()[ours]["psnr"] == rows[ours]["psnr"]


def test_scores_are_those_of_the_tasks_test_program(measured, run):
    rows = scores()
    pairs, out = measured / "pairs", measured / "out"
    synthesize("rain_medium", pairs, sorted((measured / "CBSD68").iterdir()))
    weights = report.ROOT / rows[f"{RAIN}/mixed_rain"]["weights"]
    arguments = ["--weights", weights, "--input_dir", pairs, "--result_dir", out]
    run(test, *arguments, "--device", "cpu", "--jobs", 1)
    lines = list(csv.DictReader((out / "pairs" / "scores.csv").read_text("utf-8").splitlines()))
    for name, method in (("pairs", "mixed_rain"), ("pairs input", "input")):
        row = rows[f"{RAIN}/{method}"]
        for key, tolerance in (("psnr", 1e-3), ("ssim", 1e-4)):
            mean = np.mean([float(line[key]) for line in lines if line["set"] == name])
            assert row[key] == pytest.approx(mean, abs=tolerance)


def test_true_kernels_are_those_that_blurred_the_samples(project):
    case = results.Case("Deblurring", "CBSD68", "blur_mild", ())
    for sample in case.samples(project):
        kernel = baselines.true_kernel(sample.name, "blur_mild")
        again = blur_in_linear_light(sample.target / np.float32(255), kernel)
        assert np.array_equal(to_uint8(again), to_uint8(sample.degraded))


def test_total_variation_is_better_than_the_linear_reconstruction(project):
    weights = project / "any.safetensors"
    save_checkpoint(weights, network(25))
    case = results.Case("Compressive_Sensing", "CBSD68", "25%", (weights,))
    samples = list(case.samples(project))
    assert samples[0].target.shape == (64, 80)
    found = {m: results.measure(case, samples, m, jobs=1)[0] for m in case.methods}
    assert list(found) == ["linear", "total variation", "any"]
    assert results.summary(found["total variation"], found["linear"])["least_gain"] > 0


def test_least_norm_image_is_the_pseudo_inverse_and_has_the_measurements():
    image, sensing = torch.rand(1, 1, 64, 32), network(25)
    Phi = sensing.A.Phi.detach()
    with torch.no_grad():
        y = sensing.measure(image)
        least = baselines.minimum_norm(sensing, y)
        assert torch.allclose(sensing.measure(least), y, atol=1e-4)
    block = torch.linalg.pinv(Phi) @ y[0, :, 1, 0]
    assert torch.allclose(least[0, 0, 32:].flatten(), block, atol=1e-4)


def test_deconvolution_undoes_a_blur():
    clean = data.chelsea()[80:176, 140:236] / np.float32(255)
    kernel = baselines.gaussian_kernel(1.0)
    blurred = blur_in_linear_light(clean, kernel)
    restored = baselines.richardson_lucy(blurred, kernel, 30)
    assert np.mean((restored - clean) ** 2) < 0.75 * np.mean((blurred - clean) ** 2)
    unchanged = baselines.richardson_lucy(clean, np.ones((1, 1)), 3)
    assert np.allclose(unchanged, clean, atol=1e-3)
