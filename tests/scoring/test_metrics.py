"""Scores against the published scripts' numbers, closed forms and scikit-image; their files and
tables; evaluate.py of the tasks as a program."""

import csv
import json
import math
import os
import re
import subprocess
import sys
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from dgunet.base.errors import InputError
from dgunet.images.files import read_image, write_image
from dgunet.scoring import evaluate as evaluation
from dgunet.scoring import protocols as metrics
from dgunet.scoring import tables
from dgunet.scoring.protocols import PROTOCOLS, Score
from dgunet.scoring.published import PUBLISHED, published_scores

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests/fixtures/metrics"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())
TOLERANCES = {  # dB, SSIM
    "deraining_y": (1e-4, 1e-6),
    "matlab_rgb": (1e-4, 1e-4),
    "compressive_sensing_y": (1e-6, 1e-6),
    "realblur": (0.02, 1e-3),
}


def squeezed(table: str) -> str:
    """A table without its padding."""
    return re.sub(" +", " ", table)


def random_pair(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    """A smooth random picture (uint8) and a noisy copy."""
    random = np.random.default_rng(7)
    smooth = gaussian_filter(random.random(shape), (3, 3, 0)[: len(shape)], mode="wrap")
    target = np.rint(255 * (smooth - smooth.min()) / np.ptp(smooth))
    restored = np.clip(target + random.integers(-12, 13, shape), 0, 255)
    return restored.astype(np.uint8), target.astype(np.uint8)


def fixture_pair(name: str) -> tuple[np.ndarray, np.ndarray]:
    return tuple(read_image(FIXTURES / f"{name}_{kind}.png") for kind in ("restored", "target"))


@pytest.mark.parametrize(
    ("name", "protocol"), [(name, protocol) for name in EXPECTED for protocol in EXPECTED[name]]
)
def test_equals_published_script(name, protocol):
    psnr, ssim = PROTOCOLS[protocol](*fixture_pair(name))
    expected = EXPECTED[name][protocol]
    assert psnr == pytest.approx(expected["psnr"], abs=TOLERANCES[protocol][0])
    assert ssim == pytest.approx(expected["ssim"], abs=TOLERANCES[protocol][1])


@pytest.mark.parametrize("shape", [(150, 97, 3), (40, 33)])
def test_gaussian_rgb_equals_skimage(shape):
    restored, target = random_pair(*shape)
    _, ssim = metrics.gaussian_rgb(restored, target)
    assert ssim == pytest.approx(
        structural_similarity(
            restored,
            target,
            gaussian_weights=True,
            use_sample_covariance=False,
            data_range=255,
            channel_axis=2 if len(shape) == 3 else None,
        ),
        abs=1e-12,
    )


def test_compressive_sensing_y_is_neither_rounded_nor_left_unclipped():
    restored, target = random_pair(90, 75)
    restored = restored / 255 * 1.2 - 0.1
    levels = np.clip(restored, 0, 1) * 255
    psnr, ssim = metrics.compressive_sensing_y(restored, target)
    assert psnr == pytest.approx(10 * np.log10(255**2 / np.mean((levels - target) ** 2)), abs=1e-9)
    expected = structural_similarity(levels, target.astype(float), data_range=255)
    assert ssim == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", [(70, 45, 3), (45, 70)])
@pytest.mark.parametrize("as_float", [False, True])
def test_matlab_ssim_is_gaussian_over_all_axes(shape, as_float):
    def blur(image):
        return gaussian_filter(image, 1.5, radius=5, mode="nearest")

    restored, target = random_pair(*shape)
    x, y = restored / 255, target / 255
    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
    structure = (2 * covariance + 9e-4) / (variance_x + variance_y + 9e-4)
    pair = (x.astype(np.float32), target) if as_float else (restored, target)
    psnr, ssim = metrics.matlab_rgb(*pair)
    assert ssim == pytest.approx(np.mean(luminance * structure), abs=1e-6 if as_float else 1e-12)
    assert psnr == pytest.approx(10 * np.log10(1 / np.mean((x - y) ** 2)), abs=1e-5)


@pytest.mark.parametrize(
    ("colour", "luma"),
    [
        ((0, 0, 0), 16),
        ((255, 255, 255), 235),
        ((255, 0, 0), 81),
        ((0, 255, 0), 145),
        ((0, 0, 255), 41),
        ((255, 255, 0), 210),
        ((100, 150, 200), 137),  # 25.679 + 75.619 + 19.581 + 16 = 136.88
    ],
)
def test_deraining_luma(colour, luma):
    image = np.broadcast_to(np.uint8(colour), (12, 12, 3))
    psnr, _ = metrics.deraining_y(image, np.zeros((12, 12, 3), np.uint8))
    assert psnr == (math.inf if luma == 16 else pytest.approx(20 * math.log10(255 / (luma - 16))))


def test_limited_range_luma_rounds_the_exact_value_half_up():
    colours = np.random.default_rng(0).integers(0, 256, (2000, 3), np.uint8)
    weights = [Fraction(65481), Fraction(128553), Fraction(24966)]
    exact = [
        16 + sum(w * int(c) for w, c in zip(weights, colour, strict=True)) / 255000
        for colour in colours
    ]
    rounded = metrics.limited_range_luma(colours[None])[0]
    assert rounded.tolist() == [math.floor(value + Fraction(1, 2)) for value in exact]


def test_psnr_of_an_offset():
    image = np.random.default_rng(0).random((3, 16, 16))
    assert metrics.psnr(image, image + 0.01) == pytest.approx(40)
    tensor = torch.full((1, 3, 8, 8), 0.25)
    assert metrics.psnr(tensor, tensor + 0.5) == pytest.approx(20 * math.log10(2))
    assert metrics.psnr(tensor.bfloat16(), tensor) == math.inf
    levels = np.full((4, 4), 250, np.uint8)
    assert metrics.psnr(levels, levels - 10, 255) == metrics.psnr(levels - 10, levels, 255)
    assert metrics.psnr(levels, levels - 10, 255) == pytest.approx(20 * math.log10(25.5))
    with pytest.raises(ValueError, match=r"\(4, 4\) and \(4, 1\)"):
        metrics.psnr(levels, levels[:, :1])


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("as_float", [False, True])
def test_identical_images(name, as_float):
    image = fixture_pair("astronaut")[1]
    image = image.astype(np.float32) / 255 if as_float else image
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        psnr, ssim = PROTOCOLS[name](image, image)
    assert psnr == math.inf or (name == "realblur" and psnr > 80)
    assert ssim == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["deraining_y", "gaussian_rgb", "realblur"])
def test_protocols_of_8_bit_files_round_floats(name):
    restored, target = fixture_pair("astronaut")
    nearly = (restored + np.random.default_rng(0).uniform(-0.4, 0.4, restored.shape)) / 255
    assert PROTOCOLS[name](nearly.astype(np.float32), target) == PROTOCOLS[name](restored, target)
    in_16_bits = restored.astype(np.uint16) * 257
    assert PROTOCOLS[name](in_16_bits, target) == PROTOCOLS[name](restored, target)


def test_matlab_rgb_does_not_round():
    target = np.full((16, 16, 3), 128, np.uint8)
    assert metrics.matlab_rgb(target / 255 + 0.001, target)[0] == pytest.approx(60)


def test_realblur_undoes_shift_and_brightness():
    _, picture = fixture_pair("realblur")
    target, shifted = picture[1:, 2:], picture[:-1, :-2]
    dimmed = np.rint(shifted * 0.8).astype(np.uint8)
    aligned, unaligned = metrics.realblur(dimmed, target), metrics.matlab_rgb(dimmed, target)
    assert unaligned[0] < 22
    # The brightness is matched before the alignment, so a little of the difference stays.
    assert aligned[0] > 36
    assert aligned[1] > 0.99
    grey = [np.ascontiguousarray(image[..., 1]) for image in (dimmed, target)]
    assert metrics.realblur(*grey)[0] > 36


@pytest.mark.parametrize("level", [0, 90])
def test_realblur_without_alignment_has_no_score(level):
    target = fixture_pair("astronaut")[1]
    with pytest.raises(InputError, match="aligned"):
        metrics.realblur(np.full_like(target, level), target)


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize(
    ("restored", "target", "message"),
    [
        (np.zeros((16, 20, 3)), np.zeros((16, 24, 3)), "is 16×20×3, target 16×24×3"),
        (np.zeros((16, 16)), np.zeros((16, 16, 3)), "is 16×16, target 16×16×3"),
        (np.zeros((16, 16, 4)), np.zeros((16, 16, 4)), "16×16×4; expected H×W×3 or H×W"),
        (np.zeros((6, 30, 3)), np.zeros((6, 30, 3)), "is 6×30×3; expected at least"),
        (np.full((16, 16), 200.0), np.zeros((16, 16)), "0 … 200; expected 0 … 1"),
        (np.full((16, 16), np.nan), np.zeros((16, 16)), "nan"),
        (np.zeros((16, 16), int), np.zeros((16, 16)), "is int64; expected uint8"),
    ],
)
def test_unfit_images(name, restored, target, message):
    with pytest.raises(InputError, match=message):
        PROTOCOLS[name](restored, target)


def test_unknown_protocol():
    with pytest.raises(InputError, match="deraining_y"):
        metrics.get_protocol("y")


def write_pairs(results: Path, targets: Path, names=("2", "10", "1")) -> None:
    for index, name in enumerate(names):
        restored, target = random_pair(24 + index, 30, 3)
        write_image(results / f"{name}.png", restored)
        write_image(targets / f"{name}.png", target)


def test_score_folders(tmp_path):
    results, targets = tmp_path / "results", tmp_path / "targets"
    write_pairs(results, targets)
    scores = metrics.score_folders(results, targets, "gaussian_rgb", jobs=2)
    assert [score.name for score in scores] == ["1", "2", "10"]
    assert scores == metrics.score_folders(results, targets, "gaussian_rgb", jobs=1, progress=False)
    pair = read_image(results / "10.png"), read_image(targets / "10.png")
    assert scores[2] == Score("10", *metrics.gaussian_rgb(*pair))
    with pytest.raises(InputError, match="0 jobs"):
        metrics.score_folders(results, targets, "gaussian_rgb", jobs=0)


def test_score_folders_names_what_is_unfit(tmp_path):
    results, targets = tmp_path / "results", tmp_path / "targets"
    write_pairs(results, targets, ["a", "b", "c", "d"])
    write_image(results / "b.png", np.zeros((12, 12, 3), np.uint8))
    (results / "c.png").write_bytes(b"no image")
    write_image(results / "d.png", np.zeros((27, 30), np.uint8))
    with pytest.raises(InputError) as error:
        metrics.score_folders(results, targets, "deraining_y")
    message = str(error.value)
    assert "3 of 4 results" in message
    assert "b.png: restored image is 12×12×3, target 25×30×3" in message
    assert str(results / "c.png") in message
    assert "d.png: restored image is 27×30, target 27×30×3" in message

    (results / "a.png").unlink()
    with pytest.raises(InputError, match=r"1 images without a partner.*a\.png"):
        metrics.score_folders(results, targets, "deraining_y")
    with pytest.raises(InputError, match="missing: does not exist"):
        metrics.score_folders(tmp_path / "missing", targets, "deraining_y")


def test_score_blocks():
    restored, target = random_pair(2 * 3 * 16, 16, 3)
    restored, target = (image.reshape(2, 3, 16, 16, 3) for image in (restored, target))
    scores = metrics.score_blocks((restored / 255).astype(np.float32), target)
    assert [score.name for score in scores][2:4] == ["0001_03", "0002_01"]
    expected = metrics.matlab_rgb(restored[1, 0], target[1, 0])
    assert (scores[3].psnr, scores[3].ssim) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(InputError, match="2×2×16×16×3, target blocks 2×3×16×16×3"):
        metrics.score_blocks(restored[:, :2], target)
    with pytest.raises(InputError, match=r"block 000[12]_0[123]"):
        metrics.score_blocks(restored.astype(float), target)


def test_mean_and_inf():
    scores = [Score("a", math.inf, 1.0), Score("b", 30.0, 0.5)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.mean_score(scores) == Score("mean", math.inf, 0.75)
        assert "| inf | 0.7500 |" in squeezed(tables.format_table({"set": scores}))
    with pytest.raises(ValueError, match="no scores"):
        metrics.mean_score([])


def test_format_table_has_mean_of_sets_and_published():
    sets = {"Rain100L": [Score("a", 36, 0.96), Score("b", 38, 0.98)], "own": [Score("c", 31, 0.8)]}
    published = published_scores("Deraining", "DGUNet_plus")
    table = squeezed(tables.format_table(sets, published, "published DGUNet_plus")).splitlines()
    assert table[:1] + table[2:] == [
        "| set | images | PSNR (dB) | SSIM | published DGUNet_plus |",
        "| Rain100L | 2 | 37.00 | 0.9700 | 38.25 / 0.974 |",
        "| own | 1 | 31.00 | 0.8000 | – |",
        "| mean | 3 | 34.00 | 0.8850 | 33.46 / 0.927 |",
    ]
    published = published_scores("Compressive_Sensing", "DGUNet")
    table = tables.format_table({"Set11_25": sets["own"]}, published)
    assert "36.11 / 0.9611" in table
    assert tables.format_table({"own": sets["own"]}, published).count("|") == 15
    with pytest.raises(ValueError, match="different images"):
        tables.format_images(sets)


def test_published_means_are_the_means_of_the_sets():
    deraining = PUBLISHED["Deraining"]
    for model in ("DGUNet", "DGUNet_plus"):
        sets = [by_model[model] for name, by_model in deraining.items() if name != "mean"]
        assert np.mean(sets, axis=0) == pytest.approx(deraining["mean"][model], abs=0.01)
    assert published_scores("Colouring", "DGUNet") == {}


def test_csv_round_trip(tmp_path):
    sets = {
        "Rain100L": [Score("a,b", 31.123456789012345, 0.1 + 0.2), Score("c", math.inf, 1.0)],
        "ähnlich": [Score("d", 20.0, 0.5)],
    }
    path = tmp_path / "new" / "scores.csv"
    tables.write_csv(path, sets, PROTOCOLS["deraining_y"], "settings: self_ensemble on, x off")
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    read: dict[str, list[Score]] = {}
    for row in rows:
        score = Score(row["image"], float(row["psnr"]), float(row["ssim"]))
        read.setdefault(row["set"], []).append(score)
    assert read == sets
    assert {row["protocol"] for row in rows} == {"deraining_y"}
    assert rows[0]["settings"] == "settings: self_ensemble on, x off"

    before = path.read_bytes()
    with pytest.raises(TypeError):
        tables.write_csv(path, {"set": [Score("a", None, 1.0)]}, "deraining_y")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["scores.csv"]


def test_settings(tmp_path):
    assert evaluation.read_settings(tmp_path) is None
    evaluation.write_settings(tmp_path / "a", {"model": "DGUNet_plus", "self_ensemble": True})
    settings = evaluation.read_settings(tmp_path, tmp_path / "a")
    assert evaluation.describe_settings({"x": settings}) == (
        "settings: model DGUNet_plus, self_ensemble on"
    )
    assert evaluation.model_of([settings, settings]) == "DGUNet_plus"
    assert evaluation.model_of([None]) == "DGUNet"
    (tmp_path / "settings.json").write_text("[1]")
    with pytest.raises(InputError, match=r"settings\.json: holds a list"):
        evaluation.read_settings(tmp_path)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(InputError, match="no JSON"):
        evaluation.read_settings(tmp_path)


def run_main(task: str, monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """Run the task's evaluate.py in this process; return exit code, stdout, stderr."""
    program = __import__(f"{task}.evaluate", fromlist=["main"])
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    code = 0
    try:
        program.main()
    except SystemExit as error:
        code = error.code
    return code, *capsys.readouterr()


def test_evaluate_the_five_deraining_sets(tmp_path, monkeypatch, capsys):
    results, data = tmp_path / "results", tmp_path / "data"
    for name in ("Rain100L", "Rain100H", "Test100", "Test1200", "Test2800"):
        write_pairs(results / name, data / name / "target", ["1", "2"])
    evaluation.write_settings(results / "Test100", {"self_ensemble": True})
    folders = ["--result_dir", results, "--input_dir", data]
    table = tmp_path / "scores.csv"
    code, out, _ = run_main("Deraining", monkeypatch, capsys, *folders, "--csv", table)
    assert code == 0
    assert "protocol deraining_y: PSNR and SSIM on Y" in out
    assert "of Rain100L: unknown" in out
    assert "of Test100: self_ensemble on" in out
    assert "37.42 / 0.969" in out
    assert [line.split()[1] for line in out.splitlines() if "33.06 / 0.923" in line] == ["mean"]
    assert len(table.read_text().splitlines()) == 11

    plus = ["--dataset", "Rain100L", "Test100", "--model", "DGUNet_plus"]
    _, out, _ = run_main("Deraining", monkeypatch, capsys, *folders, *plus)
    assert "38.25 / 0.974" in out
    assert "33.46" not in out  # the mean of two sets is not the published mean of five
    other = ["--dataset", "Rain100L", "--protocol", "gaussian_rgb"]
    _, out, _ = run_main("Deraining", monkeypatch, capsys, *folders, *other)
    assert "protocol gaussian_rgb" in out
    assert "published" not in out  # those scores have another protocol

    (results / "Test2800" / "2.png").unlink()
    code, out, err = run_main("Deraining", monkeypatch, capsys, *folders)
    assert (code, out) == (2, "")
    assert str(data / "Test2800/target/2.png") in err
    assert err.count("\n") == 1


def test_evaluate_deblurring_sets(tmp_path, monkeypatch, capsys):
    data, results = tmp_path / "data", tmp_path / "results"
    targets = data / "RealBlur_J/test/target"
    for kind, folder in (("restored", results), ("target", targets)):
        write_image(folder / "scene.png", read_image(FIXTURES / f"realblur_{kind}.png"))
    arguments = ["--result_dir", results, "--target_dir", data, "--dataset", "RealBlur_J"]
    code, out, _ = run_main("Deblurring", monkeypatch, capsys, *arguments)
    assert code == 0
    assert "protocol realblur:" in out
    assert "| 31.58 | 0.9169 |" in squeezed(out)
    assert "published" not in out

    plain = ["--result_dir", results, "--target_dir", targets]
    _, out, _ = run_main("Deblurring", monkeypatch, capsys, *plain)
    assert "protocol matlab_rgb:" in out
    assert "| test/target | 1 | 22.16 | 0.9283 |" in squeezed(out)
    _, out, _ = run_main("Deblurring", monkeypatch, capsys, *plain, "--dataset", "GoPro")
    assert "32.71 / 0.960" in out

    write_pairs(results / "GoPro", data / "GoPro/test/target")
    (results / "RealBlur_J").mkdir()
    code, _, err = run_main("Deblurring", monkeypatch, capsys, *arguments, "GoPro")
    assert code == 2
    assert "score them apart" in err


def test_evaluate_sidd_blocks(tmp_path, monkeypatch, capsys):
    restored, target = random_pair(2 * 2 * 32, 32, 3)
    blocks = [image.reshape(2, 2, 32, 32, 3) for image in (restored, target)]
    result, truth = tmp_path / "SIDD/mat/Idenoised.mat", tmp_path / "ValidationGtBlocksSrgb.mat"
    result.parent.mkdir(parents=True)
    savemat(result, {"Idenoised": np.float32(blocks[0] / 255)})
    savemat(truth, {"ValidationGtBlocksSrgb": blocks[1]})
    evaluation.write_settings(result.parent.parent, {"self_ensemble": False})
    files = ["--result", result, "--target", truth]
    code, out, _ = run_main("Denoising", monkeypatch, capsys, *files)
    assert code == 0
    assert "protocol matlab_rgb" in out
    assert "settings: self_ensemble off" in out
    mean = np.mean([metrics.matlab_rgb(blocks[0][i], blocks[1][i]) for i in np.ndindex(2, 2)], 0)
    assert f"| SIDD | 4 | {mean[0]:.2f} | {mean[1]:.4f} | 39.88 / 0.959 |" in squeezed(out)

    for content, message in [
        (b"MATLAB 5.0 MAT-file" + bytes(300), "cannot be read as a MAT file"),
        (b"MATLAB 7.3".ljust(124) + b"\x00\x02IM" + bytes(300), "expected v5"),
        (result.read_bytes()[:1000], "cannot be read as a MAT file"),
    ]:
        broken = tmp_path / "broken.mat"
        broken.write_bytes(content)
        code, _, err = run_main("Denoising", monkeypatch, capsys, *files[2:], "--result", broken)
        assert code == 2
        assert message in err
    code, _, err = run_main("Denoising", monkeypatch, capsys, "--result", truth, "--target", truth)
    assert code == 2
    assert "has no variable Idenoised" in err
    code, _, err = run_main("Denoising", monkeypatch, capsys, "--result", tmp_path / "none.mat")
    assert code == 2
    assert "does not exist" in err


def test_evaluate_denoising_folders(tmp_path, monkeypatch, capsys):
    results, targets = tmp_path / "results", tmp_path / "targets"
    write_pairs(results, targets)
    folders = ["--result_dir", results, "--target_dir", targets]
    code, out, _ = run_main("Denoising", monkeypatch, capsys, *folders)
    assert code == 0
    assert "protocol gaussian_rgb" in out
    assert "settings unknown" in out
    assert run_main("Denoising", monkeypatch, capsys, *folders[:2])[0] == 2
    assert run_main("Denoising", monkeypatch, capsys, *folders, "--result", "x.mat")[0] == 2


def run_program(*command, folder: Path = ROOT) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_evaluate_started_three_ways(tmp_path):
    write_pairs(tmp_path / "results", tmp_path / "targets")
    folders = ["--result_dir", tmp_path / "results", "--target_dir", tmp_path / "targets"]
    runs = [
        run_program("evaluate.py", *folders, folder=ROOT / "Deraining"),
        run_program("Deraining/evaluate.py", *folders),
        run_program("-m", "Deraining.evaluate", *folders),
    ]
    assert [run.returncode for run in runs] == [0, 0, 0], runs[0].stderr
    assert "PSNR (dB)" in runs[0].stdout
    assert runs[0].stdout == runs[1].stdout == runs[2].stdout


@pytest.mark.parametrize("task", ["Deblurring", "Deraining", "Denoising"])
def test_user_error_is_one_line_and_exit_code_2(task, tmp_path):
    folders = ["--result_dir", tmp_path / "none", "--target_dir", tmp_path]
    run = run_program("evaluate.py", *folders, folder=ROOT / task)
    assert run.returncode == 2
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize("protocol", ["matlab_rgb", "deraining_y", "gaussian_rgb"])
def test_images_without_room_for_ssim_are_left_out(tmp_path, capsys, protocol):
    results, targets = tmp_path / "results", tmp_path / "targets"
    write_pairs(results, targets, ["a", "b", "c"])
    expected = [s for s in metrics.score_folders(results, targets, protocol) if s.name != "b"]
    for folder in (results, targets):
        write_image(folder / "b.png", np.zeros((5, 30, 3), np.uint8))
    assert metrics.score_folders(results, targets, protocol) == expected
    assert f"{results}: 1 images are smaller than the window of SSIM" in capsys.readouterr().err
    for folder in (results, targets):
        for name in "ac":
            (folder / f"{name}.png").unlink()
    with pytest.raises(InputError, match="expected some that can be scored"):
        metrics.score_folders(results, targets, protocol)


def test_evaluate_the_sets_that_are_there(tmp_path, monkeypatch, capsys):
    results, data = tmp_path / "results", tmp_path / "data"
    for name in ("Rain100L", "Test100"):
        write_pairs(results / name, data / name / "target", ["1", "2"])
    folders = ["--result_dir", results, "--input_dir", data]
    code, out, _ = run_main("Deraining", monkeypatch, capsys, *folders)
    assert code == 0 and "Rain100L" in out and "Test100" in out and "Rain100H" not in out
    code, _, err = run_main("Deraining", monkeypatch, capsys, *folders, "--dataset", "Rain100H")
    assert code == 2 and "Rain100H: does not exist" in err
