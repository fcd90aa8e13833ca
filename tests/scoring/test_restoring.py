"""Restoring test sets and scoring the results: test.py of the image-restoration tasks."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pictures import noisy_pair, smooth, write_pairs
from scipy.io import loadmat, savemat, whosmat

from dgunet.base.files import sha256
from dgunet.Deblurring import test as deblurring_test
from dgunet.Denoising import evaluate as denoising_evaluate
from dgunet.Denoising import test as denoising_test
from dgunet.Deraining import evaluate as deraining_evaluate
from dgunet.Deraining import test as deraining_test
from dgunet.images.files import read_image, write_image
from dgunet.model.checkpoint import load_model, save_checkpoint
from dgunet.model.registry import build_model
from dgunet.scoring.protocols import deraining_y, gaussian_rgb
from dgunet.scoring.results_folder import read_settings

METRICS = Path(__file__).parents[1] / "fixtures" / "metrics"


def make_pairs(folder, names="ab", size=(21, 30)):
    write_pairs(folder / "input", folder / "target", names, size)
    return folder


def expected_result(weights, image):
    """The result for an H×W×3 float image, by the network alone."""
    network, _ = load_model(weights)
    degraded = torch.as_tensor(image, dtype=torch.float32).permute(2, 0, 1)[None]
    height, width = degraded.shape[2:]
    padded = F.pad(degraded, (0, -width % 8, 0, -height % 8), mode="reflect")
    with torch.no_grad():
        restored = network(padded)[0][0, :, :height, :width]
    return restored.permute(1, 2, 0).numpy()


def rounded(restored):
    return np.rint(np.clip(restored, 0, 1) * 255).astype(np.uint8)


@pytest.fixture
def restore(run, weights, tmp_path):
    """Run a test.py with weights (a name or a file) on a folder, results to tmp_path/out."""

    def restore(program, name, input_dir, *more):
        file = weights.get(name, name)
        folders = ("--input_dir", input_dir, "--result_dir", tmp_path / "out")
        return run(program, "--weights", file, *folders, *more)

    return restore


def rows_of(path, set_name=None):
    rows = csv.DictReader(path.read_text("utf-8").splitlines())
    return [row for row in rows if set_name in (None, row["set"])]


def test_sets_are_restored_and_scored(weights, restore, run, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    make_pairs(data / "Rain100L", ["1", "2", "10"])
    make_pairs(data / "test" / "Test100", ["x y", "ü"])  # where the published programs have them
    printed = restore(deraining_test, "Deraining", data)
    for row in ("| Rain100L | 3 ", "| Test100 | 2 ", "| mean | 5 "):
        assert row in printed
    assert "protocol deraining_y: PSNR and SSIM on Y" in printed and "published" not in printed

    names = sorted(path.name for path in (out / "Rain100L").iterdir())
    assert names == ["1.png", "10.png", "2.png", "scores.csv", "settings.json"]
    degraded = read_image(data / "Rain100L/input/10.png") / 255
    expected = rounded(expected_result(weights["Deraining"], degraded))
    assert np.abs(read_image(out / "Rain100L/10.png").astype(int) - expected).max() <= 1

    settings = read_settings(out / "Test100")
    assert settings["weights_sha256"] == sha256(weights["Deraining"])
    assert (settings["self_ensemble"], settings["tile"]) == (False, 0)
    assert "unfinished" not in settings

    folders = ("--target_dir", data, "--result_dir", out, "--dataset", "Rain100L")
    run(deraining_evaluate, *folders, "--csv", tmp_path / "scores.csv")
    restored, inputs = (
        rows_of(out / "Rain100L/scores.csv", name) for name in ("Rain100L", "Rain100L input")
    )
    assert restored == rows_of(tmp_path / "scores.csv")
    pair = [read_image(data / "Rain100L" / part / "1.png") for part in ("input", "target")]
    assert float(inputs[0]["psnr"]) == deraining_y(*pair)[0]
    before, after = (np.mean([float(r["psnr"]) for r in rows]) for rows in (inputs, restored))
    gain = f"{after - before:+.2f}"
    assert f"Rain100L: input {before:.2f} dB, restored {after:.2f} dB: {gain} dB" in printed


def test_sets_of_two_protocols_are_reported_apart(restore, tmp_path):
    data = tmp_path / "data"
    make_pairs(data / "GoPro/test")
    for part, name in (("input", "restored"), ("target", "target")):
        image = read_image(METRICS / f"realblur_{name}.png")
        write_image(data / "RealBlur_J/test" / part / "a.png", image[:120, :160])
    sets = ("--dataset", "GoPro", "RealBlur_J")
    printed = restore(deblurring_test, "identity Deblurring", data, *sets)
    assert "protocol matlab_rgb" in printed and "protocol realblur" in printed
    assert "GoPro: input 26" in printed
    assert "dB: +0.00 dB" in printed.split("protocol realblur")[1]


def test_a_set_that_is_its_own_target_gains_nothing(restore, tmp_path):
    data = make_pairs(tmp_path / "data")
    for target in (data / "target").iterdir():
        shutil.copy(target, data / "input")
    printed = restore(deblurring_test, "identity Deblurring", data)
    assert "input inf dB, restored inf dB: +0.00 dB" in printed


def test_published_scores_stand_beside_those_of_the_published_size(restore, tmp_path, monkeypatch):
    network = build_model("Deraining")
    network.zero_image_convolutions()
    save_checkpoint(tmp_path / "full.pth", network)
    sets = deraining_evaluate.TEST_SETS
    monkeypatch.setitem(sets, "Rain100L", replace(sets["Rain100L"], images=1))
    make_pairs(tmp_path / "data/Rain100L", "a", (16, 16))
    printed = restore(deraining_test, tmp_path / "full.pth", tmp_path / "data")
    assert "published DGUNet" in printed and "37.42 / 0.969" in printed
    assert "sizes" not in read_settings(tmp_path / "out/Rain100L")


def test_folder_without_targets_is_restored_and_not_scored(restore, tmp_path):
    mine, evil = make_pairs(tmp_path / "mine"), make_pairs(tmp_path / "\x1b[2J\a")
    assert "| mine | 2 |" in restore(deblurring_test, "Deblurring", mine)
    printed = restore(deblurring_test, "Deblurring", evil)
    assert r"\x1b[2J\x07: 2 images" in printed and all(map(str.isprintable, printed.split("\n")))
    printed = restore(deblurring_test, "Deblurring", mine / "input", "--self_ensemble")
    assert "input: no targets, no scores" in printed
    assert read_settings(tmp_path / "out/input")["self_ensemble"] is True
    assert not (tmp_path / "out/input/scores.csv").exists()
    assert (tmp_path / "out/mine/a.png").read_bytes() != (tmp_path / "out/input/a.png").read_bytes()


def test_grey_alpha_16_bit_and_tiny_images_are_restored(weights, restore, tmp_path):
    folder, rgb = tmp_path / "data", smooth(19, 23, 3)
    grey, deep = rgb[..., 0], rgb.astype(np.uint16) * 257 + 100
    kinds = {"grey": grey, "rgba": np.dstack([rgb, grey]), "deep": deep, "tiny": smooth(1, 1, 3)}
    for name, pixels in kinds.items():
        write_image(folder / f"{name}.png", pixels)
    assert "data: 4 images restored" in restore(denoising_test, "Denoising", folder)
    results = {name: read_image(tmp_path / "out/data" / f"{name}.png") for name in kinds}
    seen = {"grey": np.repeat(grey[..., None], 3, axis=2) / 255, "rgba": rgb / 255}
    for name, pixels in (seen | {"deep": deep / 65535}).items():
        expected = expected_result(weights["Denoising"], pixels)
        expected = rounded(expected.mean(2) if name == "grey" else expected)
        assert np.abs(results[name].astype(int) - expected).max() <= 1, name
    assert results["tiny"].shape == (1, 1, 3)


def test_unfit_inputs_are_refused_before_anything_is_computed(restore, tmp_path):
    data = tmp_path / "data"

    def refusal(input_dir, *more):
        line = restore(deraining_test, "Deraining", input_dir, *more)
        assert not (tmp_path / "out").exists()
        return line

    assert f"{data}: does not exist; expected images" in refusal(data)
    line = refusal(tmp_path)
    assert "no images; expected images in it, in input/ or a set (Rain100L, Rain100H" in line
    make_pairs(data / "Rain100L")
    line = refusal(data, "--dataset", "Rain100L", "Test100")
    assert f"{data}/Test100/input: does not exist; expected a folder of images" in line
    write_image(data / "Rain100L/input/c.png", smooth(9, 9, 3))
    assert "1 images without a partner" in refusal(data)
    write_image(data / "Rain100L/target/c.png", smooth(9, 8, 3))
    assert "1 of 3 pairs differ in size" in refusal(data)
    write_image(data / "Rain100L/input/c.jpg", smooth(9, 9, 3))
    line = refusal(data / "Rain100L/input")
    assert "2 images share their name but for the suffix" in line and "c.jpg, c.png" in line
    (data / "Rain100L/input/c.jpg").write_text("not an image")
    (data / "Rain100L/input/c.png").unlink()
    line = refusal(data / "Rain100L/input")
    assert "c.jpg: 12 bytes of no known image format" in line


def test_weights_that_do_not_fit_are_refused(run, restore, tmp_path):
    make_pairs(tmp_path / "data")
    folders = ("--input_dir", tmp_path / "data", "--result_dir", tmp_path / "out")
    line = run(denoising_test, *folders)
    assert "--weights is missing; expected a checkpoint of Denoising" in line and "http" in line
    for name, more, message in (
        (tmp_path / "none.pth", (), "none.pth: does not exist"),
        ("Deblurring", (), "this is a Deblurring DGUNet checkpoint"),
        ("Denoising", ("--device", "cuda:99"), "expected auto"),
        ("Denoising", ("--jobs", 0), "jobs is 0"),
    ):
        assert message in restore(denoising_test, name, tmp_path / "data", *more)
    assert not (tmp_path / "out").exists()


def test_nothing_of_the_users_is_lost(restore, tmp_path):
    out, mine = tmp_path / "out", make_pairs(tmp_path / "mine")
    arguments = (deblurring_test, "identity Deblurring", mine)
    foreign = out / "mine/a.png"
    write_image(foreign, smooth(5, 5, 3))
    assert "mine: holds a.png, not made by Deblurring/test.py" in restore(*arguments)
    assert np.array_equal(read_image(foreign), smooth(5, 5, 3))
    restore(*arguments, "--overwrite")
    assert np.array_equal(read_image(foreign), read_image(mine / "input/a.png"))

    restore(*arguments)  # its own: replaced silently
    (out / "mine/other.png").write_bytes(b"precious")
    line = restore(*arguments, "--overwrite")
    assert "holds 1 images or MAT files that this run would not replace: other.png" in line
    (out / "mine/other.png").unlink()
    (out / "mine/settings.json").write_text('{"program": "an editor"}')
    assert "not made by" in restore(*arguments)

    before = sorted(mine.rglob("*"))
    line = restore(*arguments, "--result_dir", tmp_path, "--overwrite")
    assert f"{mine}: is where the results would go, but {mine}/input lies there" in line
    assert sorted(mine.rglob("*")) == before


def test_an_interrupted_run_says_so_and_can_be_repeated(restore, tmp_path):
    mine = make_pairs(tmp_path / "mine", "abcd")
    whole = (mine / "input/c.png").read_bytes()
    (mine / "input/c.png").write_bytes(whole[:300])
    out = tmp_path / "out"
    arguments = (deblurring_test, "Deblurring", mine)
    assert f"{mine}/input/c.png: cannot be read as an image" in restore(*arguments)
    assert read_settings(out / "mine")["unfinished"] is True
    written = sorted(path.name for path in (out / "mine").iterdir())
    assert written == ["a.png", "b.png", "settings.json"]
    assert all(read_image(out / "mine" / name).shape == (21, 30, 3) for name in written[:2])

    (mine / "input/c.png").write_bytes(whole)
    assert "4 images restored" in restore(*arguments)
    assert "unfinished" not in read_settings(out / "mine")


def test_gaussian_noise_is_added_to_clean_photographs(run, restore, tmp_path):
    clean, out = tmp_path / "data/Photos", tmp_path / "out/Photos_sigma15"
    for seed, name in enumerate("ba"):
        write_image(clean / f"{name}.png", smooth(64, 64, 3, seed=seed))
    options = ("--sigma", "15", "50", "--dataset", "Photos")
    printed = restore(denoising_test, "identity Denoising", tmp_path / "data", *options)
    assert "protocol gaussian_rgb" in printed and "Photos_sigma50" in printed
    assert read_settings(out)["sigma"] == 15
    csv_file = tmp_path / "scores.csv"
    run(denoising_evaluate, "--result_dir", out, "--target_dir", clean, "--csv", csv_file)
    parts = [
        rows_of(out / "scores.csv", "Photos_sigma15"),
        rows_of(out / "scores.csv", "Photos_sigma15 input"),  # the same, of the identity
        rows_of(csv_file),
    ]
    first, *others = [[(r["image"], r["psnr"], r["ssim"]) for r in part] for part in parts]
    assert len(first) == 2 and all(other == first for other in others)


def test_the_noise_is_of_the_protocol(tmp_path):
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name, np.full((200, 200, 3), 4, np.uint8))
    (images,) = denoising_test.noisy_sets(tmp_path, [25], grey=False)
    noisy, other = map(images.read, images.inputs)
    assert abs(255 * noisy.std() - 25) < 0.2 and noisy.min() < -0.2  # not clipped
    assert not np.array_equal(noisy, other)
    assert np.array_equal(images.read(images.inputs[0]), noisy)


@pytest.mark.parametrize("stored", ["grey", "colour"])
def test_grey_photograph_gets_one_noise_and_a_grey_result(restore, tmp_path, stored):
    pixels = smooth(48, 48, 3)
    write_image(tmp_path / "Photos/a.png", pixels if stored == "colour" else pixels[..., 0])
    out = tmp_path / "out"
    options = ("--sigma", "25", *(["--grey"] if stored == "colour" else []))
    restore(denoising_test, "identity Denoising", tmp_path / "Photos", *options)
    results = out / ("Photos_grey_sigma25" if stored == "colour" else "Photos_sigma25")
    restored = read_image(results / "a.png")
    target = pixels[..., 0]
    if stored == "colour":
        target = cv2.cvtColor(pixels, cv2.COLOR_RGB2YCrCb)[..., 0]
        assert np.array_equal(read_image(results / "target/a.png"), target)
    inside = (target > 80) & (target < 175)
    noise = (restored.astype(float) - target)[inside]
    assert abs(noise.std() - 25) < 2.5  # one noise for the three channels: their mean keeps it
    row, of_input = rows_of(results / "scores.csv")
    assert float(row["psnr"]) == gaussian_rgb(restored, target)[0]
    assert row["psnr"] == of_input["psnr"]


@pytest.fixture(scope="module")
def sidd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "SIDD" / "test"
    folder.mkdir(parents=True)
    noisy, target = (image.reshape(2, 3, 16, 24, 3) for image in noisy_pair(96, 24, 3))
    savemat(folder / "ValidationNoisyBlocksSrgb.mat", {"ValidationNoisyBlocksSrgb": noisy})
    savemat(folder / "ValidationGtBlocksSrgb.mat", {"ValidationGtBlocksSrgb": target})
    return folder, noisy


def test_sidd_blocks_are_restored_and_scored_in_float(weights, restore, run, sidd, tmp_path):
    folder, noisy = sidd
    out = tmp_path / "out"
    options = ("--dataset", "SIDD", "--no_self_ensemble", "--save_images")
    printed = restore(denoising_test, "Denoising", folder.parent.parent, *options)
    assert "protocol matlab_rgb" in printed and "self_ensemble off" in printed
    plain = loadmat(out / "SIDD/mat/Idenoised.mat")["Idenoised"]
    assert plain.dtype == np.float32 and plain.shape == noisy.shape
    assert plain.min() >= 0 and plain.max() <= 1
    expected = expected_result(weights["Denoising"], noisy[1, 2] / 255)
    assert np.abs(plain[1, 2] - np.clip(expected, 0, 1)).max() < 1e-5
    assert len(list((out / "SIDD/png").iterdir())) == 6
    assert np.array_equal(read_image(out / "SIDD/png/0002_03.png"), rounded(plain[1, 2]))

    files = ("--result", out / "SIDD/mat/Idenoised.mat")
    files += ("--target", folder / "ValidationGtBlocksSrgb.mat", "--csv", tmp_path / "scores.csv")
    run(denoising_evaluate, *files)
    tables = rows_of(out / "SIDD/scores.csv", "SIDD"), rows_of(tmp_path / "scores.csv")
    scores, again = ([float(row[k]) for row in rows for k in ("psnr", "ssim")] for rows in tables)
    assert scores == pytest.approx(again, rel=1e-12)

    # As in the published command; the pictures would be left from other settings.
    line = restore(denoising_test, "Denoising", folder, "--result_dir", out / "SIDD")
    assert "holds 6 images or MAT files that this run would not replace: 0001_01.png" in line
    printed = restore(denoising_test, "Denoising", folder, "--result_dir", tmp_path / "SIDD")
    assert "self_ensemble on" in printed and "SIDD: input " in printed
    ensemble = loadmat(tmp_path / "SIDD/mat/Idenoised.mat")["Idenoised"]
    assert 1e-4 < np.abs(ensemble - plain).max() < 0.5


def test_sidd_needs_no_targets_but_refuses_others(restore, sidd, tmp_path):
    _, noisy = sidd
    name, target = "ValidationNoisyBlocksSrgb", "ValidationGtBlocksSrgb"
    arguments = (denoising_test, "identity Denoising", tmp_path, "--dataset", "SIDD")
    assert f"{tmp_path}/SIDD/test/{name}.mat: does not exist" in restore(*arguments)
    savemat(tmp_path / f"{name}.mat", {name: noisy[:1, :1].astype(np.float32)})
    assert "is float32 (1, 1, 16, 24, 3); expected uint8" in restore(*arguments)
    savemat(tmp_path / f"{name}.mat", {name: noisy[:1, :2]})
    savemat(tmp_path / f"{target}.mat", {target: noisy})
    assert "expected the same" in restore(*arguments)
    (tmp_path / f"{target}.mat").unlink()
    assert "no scores" in restore(*arguments, "--no_self_ensemble")
    restored = loadmat(tmp_path / "out/SIDD/mat/Idenoised.mat")["Idenoised"]
    assert np.array_equal(restored, noisy[:1, :2] / np.float32(255))


def make_dnd(folder, images=2, boxes=3):
    """Write files of DND's structure; return its images, H×W×3, and boxes as MATLAB counts them."""
    rng = np.random.default_rng(0)
    (folder / "images_srgb").mkdir(parents=True)
    contents, all_boxes = [], []
    with h5py.File(folder / "info.mat", "w", userblock_size=512) as file:
        info = file.create_group("info")
        references = info.create_dataset("boundingboxes", (1, images), h5py.ref_dtype)
        for n in range(images):
            image = rng.uniform(0, 1, (40 + n, 60, 3)).astype(np.float32)
            top, left = rng.integers(1, 20, boxes), rng.integers(1, 30, boxes)
            # Doubles, as all numbers of MATLAB; boxes×4 there.
            corners = np.stack([top, left, top + 15, left + 22], axis=1).astype(np.float64)
            stored = file.create_dataset(f"#refs#/{n}", data=corners.T)
            references[0, n] = stored.ref
            with h5py.File(folder / "images_srgb" / f"{n + 1:04d}.mat", "w") as picture:
                picture["InoisySRGB"] = image.transpose(2, 1, 0)
            contents.append(image)
            all_boxes.append(corners.astype(int))
    return contents, all_boxes


def test_dnd_files_are_as_its_server_takes_them(restore, tmp_path, monkeypatch):
    images, boxes = make_dnd(tmp_path / "DND/test")
    out, options = tmp_path / "out", ("--dataset", "DND", "--save_images")
    arguments = (denoising_test, "identity Denoising", tmp_path, *options)
    printed = restore(*arguments, "--no_self_ensemble")
    assert "2 files for the benchmark's server" in printed and "published" not in printed
    for n in (1, 2):
        file = out / "DND/mat" / f"{n:04d}.mat"
        kinds = {name: (shape, kind) for name, shape, kind in whosmat(file)}
        logical, char = ((1, 1), "logical"), ((1,), "char")
        assert kinds == {"Idenoised": ((1, 3), "cell"), "israw": logical, "eval_version": char}
        result = loadmat(file)
        assert not result["israw"].item() and result["eval_version"].item() == "1.0"
        for k, (row0, column0, row1, column1) in enumerate(boxes[n - 1]):
            crop = result["Idenoised"][0, k]
            expected = images[n - 1][row0 - 1 : row1, column0 - 1 : column1]
            assert crop.dtype == np.float32 and np.array_equal(crop, expected)
            picture = read_image(out / "DND/png" / f"{n:04d}_{k + 1:02d}.png")
            assert np.array_equal(picture, rounded(expected))
    monkeypatch.setattr(denoising_test, "DND_IMAGES", 2)
    assert "DGUNet 40.04 dB" in restore(*arguments)
    assert read_settings(out / "DND")["self_ensemble"] is True


def test_dnd_files_that_are_not_as_expected_are_refused(restore, tmp_path):
    make_dnd(tmp_path)
    arguments = (denoising_test, "identity Denoising", tmp_path)
    second = tmp_path / "images_srgb/0002.mat"
    first = h5py.ExternalLink(second.with_name("0001.mat"), "InoisySRGB")
    for name, value, message in (
        ("other", 1, "holds no InoisySRGB"),
        ("InoisySRGB", first, "holds no InoisySRGB (a link)"),
        ("InoisySRGB", np.zeros((3, 20, 20), np.float32), "box"),
    ):
        with h5py.File(second, "w") as file:
            file[name] = value
        assert f"0002.mat: {message}" in restore(*arguments)
    assert read_settings(tmp_path / "out/DND")["unfinished"] is True
    second.unlink()
    assert "1 of the 2 images" in restore(*arguments)
    with h5py.File(tmp_path / "info.mat", "w") as file:
        file["info/boundingboxes"] = np.zeros((1, 2))
    assert "info.mat: no info.boundingboxes" in restore(*arguments)
    savemat(tmp_path / "info.mat", {"info": 1})
    assert "info.mat: is no MAT v7.3 (HDF5) file" in restore(*arguments)


def test_noise_options_are_checked(restore, tmp_path):
    for parent in "ab":
        write_image(tmp_path / parent / "set" / "1.png", smooth(16, 16, 3))
    for options, message in (
        (["--sigma", 0], "--sigma is [0.0]"),
        (["--grey"], "--grey is given without --sigma"),
        (["--sigma", 25], "holds no image"),
        (["--dataset", "nowhere"], f"{tmp_path}/nowhere: does not exist"),
        (["--dataset", "a/set", "b/set"], "two sets are called set"),
    ):
        assert message in restore(denoising_test, "Denoising", tmp_path, *options)
