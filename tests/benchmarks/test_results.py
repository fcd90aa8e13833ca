"""The program behind RESULTS.md: what it measures, what it writes, and that it notices."""

import csv
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage import data

from dgunet.data.degradations import blur_in_linear_light
from dgunet.images.files import write_image
from dgunet.model.checkpoint import save_checkpoint
from dgunet.model.registry import build_model
from dgunet.tools.synthesize import synthesize

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import baselines  # noqa: E402
import results  # noqa: E402


@pytest.fixture
def clean() -> np.ndarray:
    """A cat's eye, 96×96×3, float."""
    return data.chelsea()[80:176, 140:236] / np.float32(255)


@pytest.fixture(scope="module")
def sensing():
    torch.manual_seed(0)
    sizes = {"cs_ratio": 25, "width": 8, "width_step": 4, "last_extra": 4, "stages": 2}
    return build_model("Compressive_Sensing", "DGUNet", sizes).eval()


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with two photographs in CBSD68/, for results to be written to."""
    for number, left in enumerate((60, 200)):
        photo = data.chelsea()[100:164, left : left + 80]
        write_image(tmp_path / "CBSD68" / f"{number}.png", photo)
    places = "".join(
        f"<!-- table: {key} -->\n<!-- end of table -->\n"
        for key in ("weights", "paper", "rows", *results.TASKS)
    )
    monkeypatch.setattr(results, "REPORT", tmp_path / "RESULTS.md")
    monkeypatch.setattr(results, "SCORES", tmp_path / "scores.json")
    results.REPORT.write_text(f"# Results\n{places}The end.\n", encoding="utf-8")
    return tmp_path


def run(project: Path, *arguments: str) -> None:
    results.main(["--data", str(project), "--jobs", "1", *arguments])


def test_report_has_the_written_numbers():
    text = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    assert results.report(text, results.read_rows()) == text, "benchmarks/results.py --write"


def test_scores_are_of_the_files_that_ship():
    """Each file that ships is scored, and no score is of another."""
    rows = results.read_rows()
    cases = {case.name: case for case in results.all_cases()}
    for name, row in rows.items():
        case, _, method = name.rpartition("/")
        assert method in cases[case].methods
        if "sha256" in row:
            assert row["sha256"] == hashlib.sha256((ROOT / row["weights"]).read_bytes()).hexdigest()
    unscored = [name for name in cases if f"{name}/{results.OURS}" not in rows]
    assert not unscored, "benchmarks/results.py --data DIR --write"


def test_no_image_comes_out_worse_than_it_went_in():
    worse = {n: r["on"] for n, r in results.read_rows().items() if r.get("least_gain", 1) <= 0}
    assert not {name for name in worse if name.endswith(results.OURS)}


def test_checking_takes_less_than_a_quarter_of_an_hour():
    """… of two cores, with the data folders."""
    seconds = (row["cpu_seconds"] for row in results.read_rows().values())
    assert sum(s for s in seconds if s <= results.SLOW) < 2 * 15 * 60


def test_tolerances():
    written = {"psnr": 30.0, "least_gain": 1.0, "ssim": 0.9}
    for key, step in (("psnr", 0.02), ("least_gain", 0.02), ("ssim", 0.0005)):
        for sign in (-1, 1):
            near = {**written, key: written[key] + 0.95 * sign * step}
            assert results.differences("row", near, written) == []
            far = {**written, key: written[key] + 1.05 * sign * step}
            (line,) = results.differences("row", far, written)
            assert line.startswith(f"row: {key} is ")
    assert results.differences("row", {**written, "psnr": float("nan")}, written)


def test_writes_and_checks(project, capsys):
    row = "Deraining/CBSD68/opening"
    run(project, "--only", "Deraining/CBSD68", "--write")
    rows = json.loads(results.SCORES.read_text())
    assert list(rows) == [f"Deraining/CBSD68/{m}" for m in ("input", "opening", "DGUNet")]
    assert rows[row]["images"] == 2
    text = results.REPORT.read_text(encoding="utf-8")
    assert f"| {row} | 2 | {rows[row]['psnr']:.3f} |" in text
    assert text.endswith("The end.\n")

    run(project)  # what is written is right
    printed = capsys.readouterr().out
    assert "Deraining/CBSD68/DGUNet: " in printed
    assert "Deraining/photographs/input: has no score written yet" in printed

    before = rows[row]["psnr"]
    rows[row]["psnr"] = before + 0.03
    results.SCORES.write_text(json.dumps(rows))
    with pytest.raises(SystemExit) as failure:
        run(project)
    assert "RESULTS.md: its tables are not those of scores.json" in failure.value.code
    assert f"{row}: psnr is {before:.4f}, expected {before + 0.03:.4f}" in failure.value.code


def test_weights_that_changed_are_noticed_and_measured_anew(project):
    run(project, "--only", "Deraining/CBSD68", "--write")
    rows = json.loads(results.SCORES.read_text())
    right = rows["Deraining/CBSD68/DGUNet"].copy()
    rows["Deraining/CBSD68/DGUNet"] |= {"sha256": "0" * 64, "psnr": 20.0}
    results.write_rows(rows)
    with pytest.raises(SystemExit, match="is not the file that was scored"):
        run(project, "--only", "Deraining/CBSD68/DGUNet")
    rows["Deraining/CBSD68/input"]["psnr"] = 1.0  # of no file that changed: stays
    results.write_rows(rows)
    case = next(case for case in results.all_cases() if case.name == "Deraining/CBSD68")
    options = results.parse_arguments(["--data", str(project), "--write"])
    reasons = {
        m: results.why_not(case, f"{case.name}/{m}", rows[f"{case.name}/{m}"], options)
        for m in case.methods
    }
    assert reasons == {"input": results.WRITTEN, "opening": results.WRITTEN, "DGUNet": ""}
    run(project, "--only", "Deraining/CBSD68/DGUNet", "--write")
    written = json.loads(results.SCORES.read_text())
    assert written["Deraining/CBSD68/DGUNet"]["psnr"] == right["psnr"]
    assert written["Deraining/CBSD68/input"]["psnr"] == 1.0


def test_scores_as_the_tasks_test_program_does(project, monkeypatch):
    from dgunet.Deraining import test

    run(project, "--only", "Deraining/CBSD68", "--write")
    rows = json.loads(results.SCORES.read_text())
    synthesize("rain_medium", project / "pairs", sorted((project / "CBSD68").iterdir()))
    weights = str(ROOT / rows["Deraining/CBSD68/DGUNet"]["weights"])
    arguments = ["--weights", weights, "--input_dir", "pairs", "--result_dir", "out"]
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "argv", ["test.py", *arguments, "--device", "cpu", "--jobs", "1"])
    test.main()
    with open(project / "out" / "pairs" / "scores.csv", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    for name, method in (("pairs", "DGUNet"), ("pairs input", "input")):
        row = rows[f"Deraining/CBSD68/{method}"]
        for key, tolerance in (("psnr", 1e-3), ("ssim", 1e-4)):
            mean = np.mean([float(line[key]) for line in lines if line["set"] == name])
            assert row[key] == pytest.approx(mean, abs=tolerance)


def test_true_kernel_is_the_one_that_blurred(project):
    """Blurring the target with it again gives the input, pixel for pixel."""
    synthesize("blur_mild", project / "pairs", sorted((project / "CBSD68").iterdir()))
    case = results.Case("Deblurring", "CBSD68", ROOT, "matlab_rgb", "blur_mild")
    for sample in case.samples(project):
        kernel = results.true_kernel(sample.name, "blur_mild")
        again = blur_in_linear_light(sample.target / np.float32(255), kernel)
        assert np.array_equal(results.to_8_bit(again), sample.degraded)


def test_unclipped_noise_is_not_clipped(project):
    case = results.Case("Denoising", "CBSD68_unclipped", ROOT, "gaussian_rgb", "gaussian25")
    samples = case.samples(project)
    noise = np.stack([s.degraded - s.target / np.float32(255) for s in samples])
    assert noise.std() * 255 == pytest.approx(25, rel=0.02)
    assert noise.mean() * 255 == pytest.approx(0, abs=0.5)
    assert case.methods["input"](samples[0]).dtype == np.uint8


def test_compressive_sensing_case(project, sensing):
    """The rows of a ratio by hand; results of an untrained network are the linear ones or worse."""
    weights = project / "DGUNet_25.safetensors"
    save_checkpoint(weights, sensing)
    case = results.Case("Compressive_Sensing", "CBSD68", weights, "compressive_sensing_y", ratio=25)
    assert case.name == "Compressive_Sensing_25/CBSD68"
    samples = case.samples(project)
    assert samples[0].target.shape == (64, 80)
    scores = {m: results.score(case, samples, m, jobs=1)[0] for m in case.methods}
    assert list(scores) == ["linear", "total variation", "DGUNet"]
    found = results.summary(scores["total variation"], scores["linear"])
    assert found["least_gain"] > 0


def test_least_norm_image_is_the_pseudo_inverse(sensing):
    """… and has the measurements that it was made of."""
    image = torch.rand(1, 1, 64, 32)
    Phi = sensing.A.Phi.detach()
    with torch.no_grad():
        y = sensing.measure(image)
        least = baselines.minimum_norm(sensing, y)
        assert torch.allclose(sensing.measure(least), y, atol=1e-4)
    block = torch.linalg.pinv(Phi) @ y[0, :, 1, 0]
    assert torch.allclose(least[0, 0, 32:].flatten(), block, atol=1e-4)


def test_total_variation_keeps_the_measurements_of_an_image_it_cannot_improve(sensing):
    flat = np.full((32, 64), 128, np.uint8)
    restored = baselines.total_variation_reconstruction(sensing, flat)
    error = np.abs(restored - 128 / 255).mean()
    assert error < np.abs(baselines.linear_reconstruction(sensing, flat) - 128 / 255).mean()


def test_opening_removes_a_thin_bright_line_only():
    image = np.full((20, 30, 3), 0.5)
    image[:, 10] = 1.0
    image[5:10, 20:24] = 0.9
    expected = np.full((20, 30, 3), 0.5)
    expected[5:10, 20:24] = 0.9
    assert np.array_equal(baselines.opening(image), expected)


def test_gaussian_kernel():
    point = np.zeros((11, 11))
    point[5, 5] = 1
    expected = gaussian_filter(point, 1.1, radius=4)
    assert np.allclose(baselines.gaussian_kernel(1.1), expected[1:-1, 1:-1])


@pytest.mark.parametrize("method", ["total_variation", "wavelet", "non_local_means"])
def test_denoisers_take_away_noise(method, clean):
    if method == "wavelet":
        pytest.importorskip("pywt")
    noisy = clean + np.random.default_rng(0).normal(0, results.SIGMA, clean.shape)
    noisy = noisy.astype(np.float32)
    arguments = [] if method == "total_variation" else [results.SIGMA]
    restored = getattr(baselines, method)(noisy, *arguments)
    assert np.mean((restored - clean) ** 2) < 0.3 * np.mean((noisy - clean) ** 2)


def test_deconvolution_undoes_a_blur(clean):
    kernel = baselines.gaussian_kernel(1.0)
    blurred = blur_in_linear_light(clean, kernel)
    for restored in (
        baselines.richardson_lucy(blurred, kernel, 30),
        baselines.unsupervised_wiener(blurred, kernel),
    ):
        assert np.mean((restored - clean) ** 2) < 0.75 * np.mean((blurred - clean) ** 2)
    unchanged = baselines.richardson_lucy(clean, np.ones((1, 1)), 3)
    assert np.allclose(unchanged, clean, atol=1e-3)
