"""Releases of the datasets, as tiny trees, arranged into the folders that the programs read; and
the patches cut from SIDD."""

import numpy as np
import pytest
from scipy.io import savemat

from dgunet.base.errors import InputError
from dgunet.Denoising import generate_patches_SIDD
from dgunet.images.files import pair_by_name, read_rgb, write_image
from dgunet.tools import arrange as arranging
from dgunet.tools.arrange import arrange

SCENE = "0001_001_S6_00100_00060_3200_L"


def picture(path, seed=None):
    """Write a small image that no other file equals."""
    picture.count = getattr(picture, "count", 0) + 1
    rng = np.random.default_rng(picture.count if seed is None else seed)
    write_image(path, rng.integers(0, 256, (24, 30, 3), np.uint8))
    return path


def is_copy(first, second):
    return first.read_bytes() == second.read_bytes()


def gopro(source):
    for part, scene in (("train", "GOPR0372_07_00"), ("train", "GOPR0374_11_00"), ("test", "G3")):
        for number in (1, 2):
            for kind in ("blur", "blur_gamma", "sharp"):
                picture(source / "GOPRO_Large" / part / scene / kind / f"00000{number}.png")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["blur", "blur_gamma"])
def test_gopro(tmp_path, kind):
    source, dest = tmp_path / "source", tmp_path / "dest"
    gopro(source)
    counts = arrange("GoPro", source, dest, gamma=kind == "blur_gamma")
    assert counts == {
        dest / "train" / "input": 4,
        dest / "train" / "target": 4,
        dest / "GoPro" / "test" / "input": 2,
        dest / "GoPro" / "test" / "target": 2,
    }
    assert len(pair_by_name(dest / "train" / "input", dest / "train" / "target")) == 4
    scene = source / "GOPRO_Large" / "train" / "GOPR0374_11_00"
    for part, original in (("input", kind), ("target", "sharp")):
        placed = dest / "train" / part / "GOPR0374_11_00-000002.png"
        assert placed.samefile(scene / original / "000002.png")


def test_nothing_is_overwritten_and_a_second_run_goes_on(tmp_path):
    source, dest = tmp_path / "source", tmp_path / "dest"
    gopro(source)
    placed = dest / "GoPro" / "test" / "target" / "G3-000001.png"
    picture(placed, seed=0)
    precious = placed.read_bytes()
    with pytest.raises(InputError, match=r"1 files with other content .*G3-000001\.png"):
        arrange("GoPro", source, dest)
    assert placed.read_bytes() == precious and not (dest / "train").exists()

    placed.unlink()
    counts = arrange("GoPro", source, dest, copy=True)
    placed.unlink()
    assert arrange("GoPro", source, dest) == counts
    assert len(names(dest / "train" / "input")) == 4


def test_copies_are_made_where_links_cannot_be(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError("no hard links here")

    source, dest = tmp_path / "source", tmp_path / "dest"
    gopro(source)
    monkeypatch.setattr("os.link", no_links)
    arrange("GoPro", source, dest)
    original = source / "GOPRO_Large" / "test" / "G3" / "sharp" / "000001.png"
    placed = dest / "GoPro" / "test" / "target" / "G3-000001.png"
    assert is_copy(original, placed) and not placed.samefile(original)


def test_hide(tmp_path):
    source, dest = tmp_path / "HIDE_dataset", tmp_path / "dest"
    for view, name in (("test-close-ups", "1fromGOPR0950.png"), ("test-long-shot", "2from.png")):
        picture(source / "test" / view / name)
        picture(source / "GT" / name)
    picture(source / "train" / "9.png")
    picture(source / "GT" / "9.png")
    arrange("HIDE", source, dest)
    for part, original in (("input", "test/test-close-ups"), ("target", "GT")):
        folder = dest / "HIDE" / "test" / part
        assert names(folder) == ["1fromGOPR0950.png", "2from.png"]
        assert is_copy(folder / "1fromGOPR0950.png", source / original / "1fromGOPR0950.png")
    (source / "GT" / "2from.png").unlink()
    with pytest.raises(InputError, match=r"1 images of HIDE have no image in GT: .*2from\.png"):
        arrange("HIDE", source, tmp_path / "other")


def test_realblur(tmp_path):
    source, dest = tmp_path / "RealBlur", tmp_path / "dest"
    base = "RealBlur-J_ECC_IMCORR_centroid_itensity_ref"
    lines = {"test": [], "train": []}
    for scene, part in (("scene001", "test"), ("scene002", "test"), ("scene003", "train")):
        for number in (1, 2):
            listed = [f"{base}/{scene}/{kind}/{kind}_{number}.png" for kind in ("gt", "blur")]
            for path in listed:
                picture(source / path)
            lines[part].append(" ".join(listed) + " ")
    for part, listing in lines.items():
        (source / f"RealBlur_J_{part}_list.txt").write_text("\n".join(listing) + "\n\n")
    counts = arrange("RealBlur_J", source, dest)
    assert counts[dest / "RealBlur_J" / "test" / "input"] == 4
    assert counts[dest / "RealBlur_J" / "train" / "target"] == 2
    for part, kind in (("input", "blur"), ("target", "gt")):
        placed = dest / "RealBlur_J" / "test" / part / "scene002-blur_1.png"
        assert is_copy(placed, source / base / "scene002" / kind / f"{kind}_1.png")

    with pytest.raises(InputError, match=r"unknown layout.*RealBlur_R_test_list\.txt"):
        arrange("RealBlur_R", source, dest)
    (source / base / "scene003" / "gt" / "gt_1.png").unlink()
    with pytest.raises(InputError, match=r"RealBlur_J_train_list\.txt: lists '.*scene003"):
        arrange("RealBlur_J", source, tmp_path / "other")


def test_rain13k(tmp_path):
    source, dest = tmp_path / "source", tmp_path / "dest"
    for folder in ("train/Rain13K", "test/Rain100L", "test/Test1200"):
        for part, suffix in (("input", "jpg"), ("target", "JPG")):
            for number in (1, 2):
                picture(source / folder / part / f"{number}.{suffix}")
    counts = arrange("Rain13k", source, dest)
    assert set(counts.values()) == {2} and len(counts) == 6
    assert is_copy(dest / "train/target/2.jpg", source / "train/Rain13K/target/2.JPG")
    assert is_copy(dest / "Test1200/input/1.jpg", source / "test/Test1200/input/1.jpg")


def sidd(source):
    for number in ("010", "011"):
        for kind in ("NOISY", "GT"):
            picture(source / "Data" / SCENE / f"0001_{kind}_SRGB_{number}.PNG")
    for kind in ("NOISY", "GT"):
        picture(source / "Data" / "0002_001_S6" / f"{kind}_SRGB_010.PNG")


def test_sidd(tmp_path):
    source, dest = tmp_path / "SIDD", tmp_path / "dest"
    sidd(source)
    blocks = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), np.uint8)
    for number, name in enumerate(["ValidationNoisyBlocksSrgb", "ValidationGtBlocksSrgb"]):
        savemat(source / f"{name}.mat", {name: blocks + number})
    counts = arrange("SIDD", source, dest)
    train = dest / "SIDD" / "train"
    assert names(train / "input") == names(train / "target")
    assert names(train / "input") == [
        "0001_001_S6_00100_00060_3200_L-0001_010.png",
        "0001_001_S6_00100_00060_3200_L-0001_011.png",
        "0002_001_S6-010.png",
    ]
    for part, kind in (("input", "NOISY"), ("target", "GT")):
        placed = train / part / f"{SCENE}-0001_011.png"
        assert is_copy(placed, source / "Data" / SCENE / f"0001_{kind}_SRGB_011.PNG")
    assert counts[dest / "SIDD" / "test"] == 2 and counts[dest / "val" / "input"] == 6
    assert np.array_equal(read_rgb(dest / "val" / "input" / "0002_03.png"), blocks[1, 2])
    assert np.array_equal(read_rgb(dest / "val" / "target" / "0001_02.png"), blocks[0, 1] + 1)

    (source / "Data" / SCENE / "0001_GT_SRGB_010.PNG").unlink()
    with pytest.raises(InputError, match=r"1 files missing, each ground truth.*0001_GT_SRGB_010"):
        arrange("SIDD", source, tmp_path / "other")


def test_dnd(tmp_path):
    source, dest = tmp_path / "source", tmp_path / "dest"
    images = source / "dnd_2017" / "images_srgb"
    images.mkdir(parents=True)
    (source / "dnd_2017" / "info.mat").write_text("info")
    for number in range(1, 51):
        (images / f"{number:04d}.mat").write_text(str(number))
    counts = arrange("DND", source, dest)
    assert counts == {dest / "DND/test/images_srgb": 50, dest / "DND/test": 1}
    assert (dest / "DND/test/images_srgb/0050.mat").read_text() == "50"
    (images / "0007.mat").unlink()
    with pytest.raises(InputError, match=r"1 files missing.*0007\.mat"):
        arrange("DND", source, tmp_path / "other")


@pytest.mark.parametrize("dataset", list(arranging.DATASETS))
def test_an_unknown_layout_is_one_line(dataset, tmp_path, capsys):
    source = tmp_path / "source"
    picture(source / "something" / "else.png")
    with pytest.raises(SystemExit) as exit_:
        arranging.main([dataset, str(source), str(tmp_path / "dest")])
    assert exit_.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: {source}: unknown layout; looked, at any depth, for ")
    assert len(error.splitlines()) == 1 and not (tmp_path / "dest").exists()


def test_wrong_arguments_are_refused(tmp_path):
    gopro(tmp_path)
    for arguments, message in (
        (("GOPRO", tmp_path, tmp_path / "dest"), "unknown dataset GOPRO"),
        (("GoPro", tmp_path / "missing", tmp_path / "dest"), "does not exist"),
        (("GoPro", tmp_path, tmp_path / "dest"), "apart"),
    ):
        with pytest.raises(InputError, match=message):
            arrange(*arguments)


def cut(source, target, *options):
    arguments = ["--src_dir", source / "Data", "--tar_dir", target, "--ps", 8, "--num_patches", 5]
    generate_patches_SIDD.main([str(word) for word in (*arguments, "--num_cores", 1, *options)])


def test_patches_of_sidd(tmp_path, capsys):
    sidd(tmp_path / "SIDD")
    target = tmp_path / "train"
    cut(tmp_path / "SIDD", target)
    assert "15 pairs from 3 images" in capsys.readouterr().out
    originals = [
        [read_rgb(tmp_path / "SIDD" / "Data" / name.format(kind)) for kind in ("NOISY", "GT")]
        for name in (
            f"{SCENE}/0001_{{}}_SRGB_010.PNG",
            f"{SCENE}/0001_{{}}_SRGB_011.PNG",
            "0002_001_S6/{}_SRGB_010.PNG",
        )
    ]
    pairs = pair_by_name(target / "input", target / "target")
    assert len(pairs) == 15
    places = set()
    for noisy, truth in pairs:
        image, _ = map(int, noisy.stem.split("_"))
        patch = read_rgb(noisy)
        found = [
            (top, left)
            for top in range(17)
            for left in range(23)
            if np.array_equal(originals[image - 1][0][top : top + 8, left : left + 8], patch)
        ]
        [(top, left)] = found
        of_truth = originals[image - 1][1][top : top + 8, left : left + 8]
        assert np.array_equal(read_rgb(truth), of_truth)
        places.add((image, top, left))
    assert len(places) > 10

    before = {path: path.read_bytes() for path in target.rglob("*.png")}
    with pytest.raises(SystemExit):
        cut(tmp_path / "SIDD", target)
    assert "holds 30 images (--overwrite replaces patches)" in capsys.readouterr().err
    cut(tmp_path / "SIDD", target, "--overwrite", "--num_patches", 4)
    after = {path: path.read_bytes() for path in target.rglob("*.png")}
    assert len(after) == 24 and all(before[path] == data for path, data in after.items())

    precious = picture(target / "input" / "precious.png")
    with pytest.raises(SystemExit):
        cut(tmp_path / "SIDD", target, "--overwrite")
    assert "that this script did not make" in capsys.readouterr().err and precious.exists()
    assert len(list(target.rglob("*.png"))) == 25


def test_patches_from_the_arranged_images_and_several_cores_are_the_same(tmp_path):
    sidd(tmp_path / "SIDD")
    arrange("SIDD", tmp_path / "SIDD", tmp_path / "dest")
    cut(tmp_path / "SIDD", tmp_path / "one")
    (tmp_path / "dest" / "SIDD" / "train").rename(tmp_path / "dest" / "Data")
    cut(tmp_path / "dest", tmp_path / "two", "--num_cores", 2)
    for path in (tmp_path / "one").rglob("*.png"):
        assert is_copy(path, tmp_path / "two" / path.relative_to(tmp_path / "one"))


def test_too_large_patches_are_refused(tmp_path, capsys):
    sidd(tmp_path / "SIDD")
    with pytest.raises(SystemExit) as exit_:
        cut(tmp_path / "SIDD", tmp_path / "train", "--ps", 25)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert "smaller than a patch of 25×25 pixels" in error and " (30×24)" in error
    assert not (tmp_path / "train").exists()


def test_unequal_pairs_are_refused_before_anything_is_cut(tmp_path, capsys):
    sidd(tmp_path / "SIDD")
    truth = next((tmp_path / "SIDD").rglob("*GT*"))
    write_image(truth, np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(SystemExit) as exit_:
        cut(tmp_path / "SIDD", tmp_path / "train")
    assert exit_.value.code == 2
    assert "differ in size" in capsys.readouterr().err
    assert not (tmp_path / "train").exists()
