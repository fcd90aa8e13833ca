"""Scoring folders of results: evaluate.py of the tasks, as a program too."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from dgunet.base.errors import InputError
from dgunet.Denoising.evaluate import score_blocks
from dgunet.images.files import read_image, write_image
from dgunet.scoring.evaluate import score_folders
from dgunet.scoring.protocols import Score, gaussian_rgb, matlab_rgb
from dgunet.scoring.results_folder import write_settings

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests/fixtures/metrics"


def random_pair(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    """A random picture (uint8) and a noisy copy."""
    random = np.random.default_rng(7)
    target = random.integers(60, 200, shape)
    return (target + random.integers(-12, 13, shape)).astype(np.uint8), target.astype(np.uint8)


def squeezed(table: str) -> str:
    """A table without its padding."""
    return re.sub(" +", " ", table)


def write_pairs(results: Path, targets: Path, names=("2", "10", "1")) -> None:
    for index, name in enumerate(names):
        restored, target = random_pair(24 + index, 30, 3)
        write_image(results / f"{name}.png", restored)
        write_image(targets / f"{name}.png", target)


def test_folders_are_scored_by_name_in_natural_order(tmp_path):
    results, targets = tmp_path / "results", tmp_path / "targets"
    write_pairs(results, targets)
    scores = score_folders(results, targets, "gaussian_rgb", jobs=2)
    assert [score.name for score in scores] == ["1", "2", "10"]
    assert scores == score_folders(results, targets, "gaussian_rgb", jobs=1, progress=False)
    pair = read_image(results / "10.png"), read_image(targets / "10.png")
    assert scores[2] == Score("10", *gaussian_rgb(*pair))
    with pytest.raises(InputError, match="0 jobs"):
        score_folders(results, targets, "gaussian_rgb", jobs=0)


def test_unfit_results_are_named(tmp_path):
    results, targets = tmp_path / "results", tmp_path / "targets"
    write_pairs(results, targets, ["a", "b", "c", "d"])
    write_image(results / "b.png", np.zeros((12, 12, 3), np.uint8))
    (results / "c.png").write_bytes(b"no image")
    write_image(results / "d.png", np.zeros((27, 30), np.uint8))
    with pytest.raises(InputError) as error:
        score_folders(results, targets, "deraining_y")
    message = str(error.value)
    assert "3 of 4 results" in message
    assert "b: restored image is 12×12×3, target 25×30×3" in message
    assert str(results / "c.png") in message
    assert "d: restored image is 27×30, target 27×30×3" in message

    (results / "a.png").unlink()
    with pytest.raises(InputError, match=r"1 images without a partner.*a\.png"):
        score_folders(results, targets, "deraining_y")
    with pytest.raises(InputError, match="missing: does not exist"):
        score_folders(tmp_path / "missing", targets, "deraining_y")


@pytest.mark.parametrize("protocol", ["matlab_rgb", "deraining_y", "gaussian_rgb"])
def test_images_without_room_for_ssim_are_left_out(tmp_path, capsys, protocol):
    results, targets = tmp_path / "results", tmp_path / "targets"
    write_pairs(results, targets, ["a", "b", "c"])
    expected = [s for s in score_folders(results, targets, protocol) if s.name != "b"]
    for folder in (results, targets):
        write_image(folder / "b.png", np.zeros((5, 30, 3), np.uint8))
    assert score_folders(results, targets, protocol) == expected
    assert f"{results}: 1 images are smaller than the window of SSIM" in capsys.readouterr().err
    for folder in (results, targets):
        for name in "ac":
            (folder / f"{name}.png").unlink()
    with pytest.raises(InputError, match="expected some that can be scored"):
        score_folders(results, targets, protocol)


def test_blocks_are_scored_one_by_one():
    restored, target = random_pair(2 * 3 * 16, 16, 3)
    restored, target = (image.reshape(2, 3, 16, 16, 3) for image in (restored, target))
    scores = score_blocks((restored / 255).astype(np.float32), target)
    assert [score.name for score in scores][2:4] == ["0001_03", "0002_01"]
    expected = matlab_rgb(restored[1, 0], target[1, 0])
    assert (scores[3].psnr, scores[3].ssim) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(InputError, match=r"\(2, 2, 16, 16, 3\), target blocks \(2, 3, "):
        score_blocks(restored[:, :2], target)
    with pytest.raises(
        InputError, match=r"6 of 6 results in SIDD cannot be scored: 0001_01: restored"
    ):
        score_blocks(restored.astype(float), target)


@pytest.fixture
def few_images(monkeypatch):
    """Let the published scores be those of few images."""
    for task in ("Deraining", "Deblurring", "Denoising"):
        sets = import_module(f"dgunet.{task}.evaluate").TEST_SETS
        for name, known in sets.items():
            monkeypatch.setitem(
                sets, name, replace(known, images={"SIDD": 4, "GoPro": 1}.get(name, 2))
            )


def run_main(task: str, monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """Run the task's evaluate.py in this process; return exit code, stdout, stderr."""
    program = import_module(f"dgunet.{task}.evaluate")
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    code = 0
    try:
        program.main()
    except SystemExit as error:
        code = error.code
    return code, *capsys.readouterr()


def test_deraining_sets_beside_published_scores(few_images, tmp_path, monkeypatch, capsys):
    results, data = tmp_path / "results", tmp_path / "data"
    for name in ("Rain100L", "Rain100H", "Test100", "Test1200", "Test2800"):
        write_pairs(results / name, data / name / "target", ["1", "2"])
    write_settings(results / "Test100", {"self_ensemble": True})
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


def test_the_table_of_scores_replaces_no_image_and_no_device(tmp_path, monkeypatch, capsys):
    write_pairs(tmp_path / "results", tmp_path / "target", ["1"])
    image = tmp_path / "target/1.png"
    before = image.read_bytes()
    (tmp_path / "photo.csv").write_bytes(before)
    (tmp_path / "full.csv").symlink_to("/dev/full")
    folders = ["--result_dir", tmp_path / "results", "--target_dir", tmp_path / "target"]
    for path, words in (
        (image, "expected a name in .csv"),
        ("/dev/full", "expected a name in .csv"),
        (tmp_path / "photo.csv", "is an image, and would be replaced by text"),
        (tmp_path / "full.csv", "is no regular file"),
    ):
        code, _, err = run_main("Deraining", monkeypatch, capsys, *folders, "--csv", path)
        assert code == 2 and err.count("\n") == 1 and words in err
    assert image.read_bytes() == before == (tmp_path / "photo.csv").read_bytes()


def test_sets_that_are_there_are_scored(tmp_path, monkeypatch, capsys):
    results, data = tmp_path / "results", tmp_path / "data"
    for name, place in (("Rain100L", data), ("Test100", data / "test")):  # as published: in test/
        write_pairs(results / name, place / name / "target", ["1", "2"])
    folders = ["--result_dir", results, "--input_dir", data]
    code, out, _ = run_main("Deraining", monkeypatch, capsys, *folders)
    assert code == 0 and "Rain100L" in out and "Test100" in out and "Rain100H" not in out
    code, _, err = run_main("Deraining", monkeypatch, capsys, *folders, "--dataset", "Rain100H")
    assert code == 2 and "Rain100H: does not exist" in err


def test_deblurring_sets_have_their_protocols(few_images, tmp_path, monkeypatch, capsys):
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


def test_sidd_blocks_in_mat_files(few_images, tmp_path, monkeypatch, capsys):
    restored, target = random_pair(2 * 2 * 32, 32, 3)
    blocks = [image.reshape(2, 2, 32, 32, 3) for image in (restored, target)]
    result, truth = tmp_path / "SIDD/mat/Idenoised.mat", tmp_path / "ValidationGtBlocksSrgb.mat"
    result.parent.mkdir(parents=True)
    savemat(result, {"Idenoised": np.float32(blocks[0] / 255)})
    savemat(truth, {"ValidationGtBlocksSrgb": blocks[1]})
    write_settings(result.parent.parent, {"self_ensemble": False})
    files = ["--result", result, "--target", truth]
    code, out, _ = run_main("Denoising", monkeypatch, capsys, *files)
    assert code == 0
    assert "protocol matlab_rgb" in out
    assert "settings: self_ensemble off" in out
    mean = np.mean([matlab_rgb(blocks[0][i], blocks[1][i]) for i in np.ndindex(2, 2)], 0)
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


def test_denoising_folders(tmp_path, monkeypatch, capsys):
    results, targets = tmp_path / "results", tmp_path / "targets"
    write_pairs(results, targets)
    folders = ["--result_dir", results, "--target_dir", targets]
    code, out, _ = run_main("Denoising", monkeypatch, capsys, *folders)
    assert code == 0
    assert "protocol gaussian_rgb" in out
    assert "settings: unknown" in out
    assert run_main("Denoising", monkeypatch, capsys, *folders[:2])[0] == 2
    assert run_main("Denoising", monkeypatch, capsys, *folders, "--result", "x.mat")[0] == 2


def run_program(*command, folder: Path = ROOT) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_program_starts_in_three_ways(tmp_path):
    write_pairs(tmp_path / "results", tmp_path / "targets")
    folders = ["--result_dir", tmp_path / "results", "--target_dir", tmp_path / "targets"]
    ways = [["evaluate.py"], ["Deraining/evaluate.py"], ["-m", "Deraining.evaluate"]]
    started = [ROOT / "Deraining", ROOT, ROOT]
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(lambda way, at: run_program(*way, *folders, folder=at), ways, started))
    assert [run.returncode for run in runs] == [0, 0, 0], runs[0].stderr
    assert "PSNR (dB)" in runs[0].stdout
    assert runs[0].stdout == runs[1].stdout == runs[2].stdout
