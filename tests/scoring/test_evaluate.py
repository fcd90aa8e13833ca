"""Scoring folders of results: evaluate.py of the tasks; tables of scores."""

import csv
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pictures import noisy_pair, write_pairs
from scipy.io import savemat

from dgunet.Compressive_Sensing import evaluate as sensing
from dgunet.Deblurring import evaluate as deblurring
from dgunet.Denoising import evaluate as denoising
from dgunet.Deraining import evaluate as deraining
from dgunet.images.files import read_image, write_image
from dgunet.scoring.protocols import Score, gaussian_rgb, matlab_rgb
from dgunet.scoring.results_folder import write_settings
from dgunet.scoring.tables import format_table

FIXTURES = Path(__file__).parents[1] / "fixtures" / "metrics"


@pytest.fixture
def places(tmp_path) -> tuple[Path, Path, list]:
    """Folders of results and of targets, and the options that name them."""
    results, targets = tmp_path / "results", tmp_path / "data"
    return results, targets, ["--result_dir", results, "--target_dir", targets]


@pytest.fixture
def few_images(monkeypatch):
    """Let the published scores be those of few images."""
    for task in (deraining, deblurring, denoising):
        for name, known in task.TEST_SETS.items():
            images = {"SIDD": 4, "GoPro": 1}.get(name, 2)
            monkeypatch.setitem(task.TEST_SETS, name, replace(known, images=images))


def test_folders_are_scored_by_name_in_natural_order(places, run, tmp_path):
    results, targets, folders = places
    write_pairs(results, targets, ["2", "10", "1"])
    out = run(denoising, *folders, "--csv", tmp_path / "scores.csv", "--jobs", "2")
    assert "protocol gaussian_rgb" in out and "settings: unknown" in out
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text("utf-8").splitlines()))
    assert [row["image"] for row in rows] == ["1", "2", "10"]
    images = read_image(results / "10.png"), read_image(targets / "10.png")
    assert (float(rows[2]["psnr"]), float(rows[2]["ssim"])) == gaussian_rgb(*images)
    assert "jobs is 0" in run(denoising, *folders, "--jobs", "0")


def test_unfit_results_are_named(places, run):
    results, targets, folders = places
    write_pairs(results, targets, "abcd")
    write_image(results / "b.png", np.zeros((12, 12, 3), np.uint8))
    (results / "c.png").write_bytes(b"no image")
    write_image(results / "d.png", np.zeros((21, 30), np.uint8))
    line = run(deraining, *folders)
    assert "3 of 4 results" in line and str(results / "c.png") in line
    assert "b: restored image is 12×12×3, target 21×30×3" in line
    assert "d: restored image is 21×30, target 21×30×3" in line
    (results / "a.png").unlink()
    assert "1 images without a partner" in run(deraining, *folders)
    assert "missing: does not exist" in run(deraining, *folders, "--result_dir", "missing")


def test_images_without_room_for_ssim_are_left_out(places, run):
    results, targets, folders = places
    write_pairs(results, targets, "12")
    scores = run(deraining, *folders).splitlines()[-1]
    for folder in (results, targets):
        write_image(folder / "b.png", np.zeros((5, 30, 3), np.uint8))
    out = run(deraining, *folders)
    assert scores in out and f"{results}: 1 images are smaller than the window of SSIM" in out
    for file in (*results.glob("[12].png"), *targets.glob("[12].png")):
        file.unlink()
    assert "expected some that can be scored" in run(deraining, *folders)


def test_sets_beside_published_scores(few_images, places, run, tmp_path):
    results, data, folders = places
    for name in ("Rain100L", "Rain100H", "Test100", "Test1200", "Test2800"):
        write_pairs(results / name, data / name / "target", "12")
    write_settings(results / "Test100", {"self_ensemble": True})
    table = tmp_path / "scores.csv"
    out = run(deraining, *folders, "--csv", table)
    assert "protocol deraining_y: PSNR and SSIM on Y" in out
    assert "of Rain100L: unknown" in out and "of Test100: self_ensemble on" in out
    assert "37.42 / 0.969" in out
    assert [line.split()[1] for line in out.splitlines() if "33.06 / 0.923" in line] == ["mean"]
    assert len(table.read_text().splitlines()) == 11

    plus = ["--dataset", "Rain100L", "Test100", "--model", "DGUNet_plus"]
    out = run(deraining, *folders, *plus)
    assert "38.25 / 0.974" in out
    assert "33.46" not in out  # the mean of two sets is not the published mean of five
    out = run(deraining, *folders, "--dataset", "Rain100L", "--protocol", "gaussian_rgb")
    assert "protocol gaussian_rgb" in out
    assert "published" not in out  # those scores have another protocol

    (results / "Test2800" / "2.png").unlink()
    assert str(data / "Test2800/target/2.png") in run(deraining, *folders)


def test_the_table_of_scores_replaces_no_image_and_no_device(places, run, tmp_path):
    results, targets, folders = places
    write_pairs(results, targets, "12")
    photo = tmp_path / "photo.csv"
    photo.write_bytes((targets / "1.png").read_bytes())
    for path, words in (
        (targets / "1.png", "expected a name in .csv"),
        (photo, "is an image, and would be replaced by text"),
    ):
        before = path.read_bytes()
        printed = run(deraining, *folders, "--csv", path)
        assert words in printed and path.read_bytes() == before


def test_sets_that_are_there_are_scored(places, run):
    results, data, folders = places
    for name, place in (("Rain100L", data), ("Test100", data / "test")):  # as published: in test/
        write_pairs(results / name, place / name / "target")
    out = run(deraining, *folders)
    assert "Rain100L" in out and "Test100" in out and "Rain100H" not in out
    line = run(deraining, *folders, "--dataset", "Rain100H")
    assert "Rain100H: does not exist" in line


def test_deblurring_sets_have_their_protocols(few_images, places, run):
    results, data, folders = places
    targets = data / "RealBlur_J/test/target"
    for kind, folder in (("restored", results), ("target", targets)):
        write_image(folder / "scene.png", read_image(FIXTURES / f"realblur_{kind}.png"))
    out = run(deblurring, *folders, "--dataset", "RealBlur_J")
    assert "protocol realblur:" in out and "| 31.58 | 0.9169 |" in out and "published" not in out
    plain = ["--result_dir", results, "--target_dir", targets]
    out = run(deblurring, *plain)
    assert "protocol matlab_rgb:" in out and "| test/target | 1 | 22.16 | 0.9283 |" in out
    assert "32.71 / 0.960" in run(deblurring, *plain, "--dataset", "GoPro")
    write_pairs(results / "GoPro", data / "GoPro/test/target")
    line = run(deblurring, *folders, "--dataset", "RealBlur_J", "GoPro")
    assert "score them apart" in line


def test_sidd_blocks_in_mat_files(few_images, run, tmp_path):
    blocks = [image.reshape(2, 2, 32, 32, 3) for image in noisy_pair(2 * 2 * 32, 32, 3)]
    result, truth = tmp_path / "SIDD/mat/Idenoised.mat", tmp_path / "ValidationGtBlocksSrgb.mat"
    result.parent.mkdir(parents=True)
    savemat(result, {"Idenoised": np.float32(blocks[0] / 255)})
    savemat(truth, {"ValidationGtBlocksSrgb": blocks[1]})
    write_settings(result.parent.parent, {"self_ensemble": False})
    out = run(denoising, "--result", result, "--target", truth)
    assert "protocol matlab_rgb" in out and "settings: self_ensemble off" in out
    mean = np.mean([matlab_rgb(blocks[0][i], blocks[1][i]) for i in np.ndindex(2, 2)], 0)
    assert f"| SIDD | 4 | {mean[0]:.2f} | {mean[1]:.4f} | 39.88 / 0.959 |" in out

    broken = tmp_path / "broken.mat"
    for content, message in [
        (b"MATLAB 5.0 MAT-file" + bytes(300), "cannot be read as a MAT file"),
        (b"MATLAB 7.3".ljust(124) + b"\x00\x02IM" + bytes(300), "expected v5"),
        (result.read_bytes()[:1000], "cannot be read as a MAT file"),
        (truth.read_bytes(), "has no variable Idenoised"),
    ]:
        broken.write_bytes(content)
        assert message in run(denoising, "--target", truth, "--result", broken)
    assert "does not exist" in run(denoising, "--result", tmp_path / "none.mat")
    savemat(result, {"Idenoised": np.float32(blocks[0][:, :1] / 255)})
    line = run(denoising, "--result", result, "--target", truth)
    assert "(2, 1, 32, 32, 3), target blocks (2, 2, " in line


@pytest.mark.parametrize("given", [["--result_dir", "a"], ["--result_dir", "a", "--result", "b"]])
def test_folders_and_mat_files_are_not_mixed(given, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *given])
    with pytest.raises(SystemExit, match="2"):
        denoising.main()


def test_table_ends_with_the_mean_of_the_sets():
    sets = {"Rain100L": [Score("a", 36, 0.96), Score("b", 38, 0.98)], "own": [Score("c", 31, 0.8)]}
    published = {"Rain100L": (38.25, 0.974), "mean": (33.46, 0.9271)}
    table = re.sub(" +", " ", format_table(sets, published, "published")).splitlines()
    assert table[:1] + table[2:] == [
        "| set | images | PSNR (dB) | SSIM | published |",
        "| Rain100L | 2 | 37.00 | 0.9700 | 38.25 / 0.974 |",
        "| own | 1 | 31.00 | 0.8000 | – |",
        "| mean | 3 | 34.00 | 0.8850 | 33.46 / 0.9271 |",
    ]
    assert "published" not in format_table({"own": [Score("a", math.inf, 1)]}, published)


@pytest.mark.parametrize("model", ["DGUNet", "DGUNet_plus"])
def test_published_scores_are_consistent(model):
    means = np.mean([known.published[model] for known in deraining.TEST_SETS.values()], axis=0)
    assert means == pytest.approx(deraining.BENCHMARK.published_mean[model], abs=0.01)
    for name in ("Set11", "BSD68"):
        sets = [sensing.TEST_SETS[f"{name}_{ratio}"] for ratio in (1, 4, 10, 25, 50)]
        scores = [known.published[model] for known in sets]
        assert scores == sorted(scores)
    assert sensing.TEST_SETS["Set11_30"].published == {}
