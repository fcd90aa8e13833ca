"""Releases of the datasets, as tiny trees, arranged into the folders that the programs read; and
the patches cut from SIDD."""

import itertools

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from scipy.io import savemat

from dgunet.base.errors import InputError
from dgunet.Denoising import generate_patches_SIDD
from dgunet.images.files import pair_by_name, read_rgb, write_image
from dgunet.tools import arrange as arranging
from dgunet.tools.arrange import arrange

SCENE = "0001_001_S6_00100_00060_3200_L"


SEEDS = itertools.count(1)


def picture(path):
    """Write a small image that no other file equals."""
    pixels = np.random.default_rng(next(SEEDS)).integers(0, 256, (24, 30, 3), np.uint8)
    write_image(path, pixels)
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


@pytest.fixture
def refused(tmp_path, refusal):
    """Arrange a dataset from `tmp_path/source` by the program; return the line of its refusal."""

    def refused(dataset, source=tmp_path / "source", dest=tmp_path / "refused"):
        line = refusal(arranging.main, dataset, source, dest)
        assert not (tmp_path / "refused").exists()
        return line

    return refused


@pytest.mark.parametrize("kind", ["blur", "blur_gamma"])
def test_gopro(tmp_path, kind):
    source, dest = tmp_path / "source", tmp_path / "dest"
    gopro(source)
    counts = arrange("GoPro", source, dest, gamma=kind == "blur_gamma")
    parts = {"train": 4, "GoPro/test": 2, "val": 2}
    assert counts == {
        dest / part / kind: count for part, count in parts.items() for kind in ("input", "target")
    }
    for part, original in (("input", kind), ("target", "sharp")):
        for folder, scene in (
            ("train", "train/GOPR0374_11_00"),
            ("val", "test/G3"),
            ("GoPro/test", "test/G3"),
        ):
            placed = dest / folder / part / f"{scene.partition('/')[2]}-000002.png"
            assert placed.samefile(source / "GOPRO_Large" / scene / original / "000002.png")


def test_nothing_is_overwritten_and_a_second_run_goes_on(tmp_path):
    source, dest = tmp_path / "source", tmp_path / "dest"
    gopro(source)
    placed = dest / "GoPro" / "test" / "target" / "G3-000001.png"
    picture(placed)
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
    for place in ("test/test-close-ups/1from.png", "test/test-long-shot/2from.png", "train/9.png"):
        picture(source / place)
        picture(source / "GT" / place.rpartition("/")[2])
    arrange("HIDE", source, dest)
    for part, original in (("input", "test/test-close-ups"), ("target", "GT")):
        folder = dest / "HIDE" / "test" / part
        assert names(folder) == ["1from.png", "2from.png"]
        assert is_copy(folder / "1from.png", source / original / "1from.png")
    (source / "GT" / "2from.png").unlink()
    with pytest.raises(InputError, match=r"1 images of HIDE have no image in GT: .*2from\.png"):
        arrange("HIDE", source, tmp_path / "other")


REALBLUR = "RealBlur-J_ECC_IMCORR_centroid_itensity_ref"


def realblur(source):
    lines = {"test": [], "train": []}
    for scene, part in (("scene001", "test"), ("scene002", "test"), ("scene003", "train")):
        for number in (1, 2):
            listed = [f"{REALBLUR}/{scene}/{kind}/{kind}_{number}.png" for kind in ("gt", "blur")]
            for path in listed:
                picture(source / path)
            lines[part].append(" ".join(listed) + " ")
    for part, listing in lines.items():
        (source / f"RealBlur_J_{part}_list.txt").write_text("\n".join(listing) + "\n\n")


def test_realblur(tmp_path, refused):
    source, dest, base = tmp_path / "source", tmp_path / "dest", REALBLUR
    realblur(source)
    counts = arrange("RealBlur_J", source, dest)
    assert counts[dest / "RealBlur_J" / "test" / "input"] == 4
    assert counts[dest / "RealBlur_J" / "train" / "target"] == 2
    for part, kind in (("input", "blur"), ("target", "gt")):
        placed = dest / "RealBlur_J" / "test" / part / "scene002-blur_1.png"
        assert is_copy(placed, source / base / "scene002" / kind / f"{kind}_1.png")

    assert "unknown layout; looked, at any depth, for RealBlur_R_test_l" in refused("RealBlur_R")
    (source / base / "scene003" / "gt" / "gt_1.png").unlink()
    assert "RealBlur_J_train_list.txt: lists 'RealBlur" in refused("RealBlur_J")


@pytest.mark.parametrize("way", ["relative", "absolute", "linked list", "linked image"])
def test_nothing_outside_the_source_is_read(tmp_path, refused, way):
    source, secret = tmp_path / "source", picture(tmp_path / "outside" / "secret.png")
    realblur(source)
    listing = source / "RealBlur_J_test_list.txt"
    first = source / listing.read_text().split()[0]
    if way == "linked image":
        first.unlink()
        first.symlink_to(secret)
    elif way == "linked list":
        listing.rename(tmp_path / "outside" / "list.txt")
        listing.symlink_to(tmp_path / "outside" / "list.txt")
    else:
        path = "../outside/secret.png" if way == "relative" else secret
        listing.write_text(f"{path} {path}\n{first} {path}")
    line = refused("RealBlur_J")
    expected = "is a link out of" if way == "linked list" else f"expected two files in {source}"
    assert expected in line


def test_links_out_of_the_source_are_refused_without_a_list_too(tmp_path, refused):
    source, secret = tmp_path / "source", picture(tmp_path / "outside" / "secret.png")
    picture(source / "Rain100L" / "target" / "1.png")
    (source / "Rain100L" / "input").mkdir()
    (source / "Rain100L" / "input" / "1.png").symlink_to(secret)  # for Rain100L and val
    assert f"2 files are links out of {source}: " in refused("Rain13k")


def test_lists_and_blocks_that_are_damaged_are_named(tmp_path, refused):
    source = tmp_path / "source"
    realblur(source)
    (source / "RealBlur_J_test_list.txt").write_bytes(b"\xff\xfe a\x00")
    assert "RealBlur_J_test_list.txt: is not UTF-8" in refused("RealBlur_J")
    (source / "RealBlur_J_test_list.txt").write_text("\x1b]0;a" + 9999 * "b")
    line = refused("RealBlur_J")
    assert "\x1b" not in line and len(line) < 500

    files = [source / f"Validation{kind}BlocksSrgb.mat" for kind in ("Noisy", "Gt")]
    for file in files:
        savemat(file, {file.stem: np.zeros((1, 1, 0, 0, 3), np.uint8)})
    assert "is uint8 (1, 1, 0, 0, 3); expected uint8 images×blocks" in refused("SIDD")
    for file in files:
        file.write_bytes(b"")
    assert "ValidationNoisyBlocksSrgb.mat: cannot be read as a MAT file" in refused("SIDD")


def test_rain13k(tmp_path):
    source, dest = tmp_path / "source", tmp_path / "dest"
    for folder in ("train/Rain13K", "test/Rain100L", "test/Test1200"):
        for part, suffix in (("input", "jpg"), ("target", "JPG")):
            for number in (1, 2):
                picture(source / folder / part / f"{number}.{suffix}")
    counts = arrange("Rain13k", source, dest)
    assert set(counts.values()) == {2} and len(counts) == 8
    assert (dest / "val/target/1.jpg").samefile(dest / "Rain100L/target/1.jpg")
    assert is_copy(dest / "train/target/2.jpg", source / "train/Rain13K/target/2.JPG")
    assert is_copy(dest / "Test1200/input/1.jpg", source / "test/Test1200/input/1.jpg")


def sidd(source):
    for number in ("010", "011"):
        for kind in ("NOISY", "GT"):
            picture(source / "Data" / SCENE / f"0001_{kind}_SRGB_{number}.PNG")
    for kind in ("NOISY", "GT"):
        picture(source / "Data" / "0002_001_S6" / f"{kind}_SRGB_010.PNG")


def test_sidd(tmp_path, refused):
    source, dest = tmp_path / "source", tmp_path / "dest"
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
    assert "1 files missing, each ground truth: " in refused("SIDD")


def test_dnd(tmp_path, refused):
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
    assert "1 files missing of DND" in refused("DND")


@pytest.mark.parametrize("dataset", arranging.DATASETS)
def test_an_unknown_layout_is_one_line(dataset, tmp_path, refused):
    picture(tmp_path / "source" / "something" / "else.png")
    message = f"{tmp_path}/source: unknown layout; looked, at any depth, for "
    assert refused(dataset).startswith(message)


def test_wrong_arguments_are_refused(tmp_path, refused):
    gopro(tmp_path / "source")
    assert "does not exist" in refused("GoPro", tmp_path / "missing")
    assert "apart" in refused("GoPro", dest=tmp_path / "source" / "dest")


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
    places = set()
    for paths in pair_by_name(target / "input", target / "target"):
        noisy, truth = map(read_rgb, paths)
        number = int(paths[0].stem.split("_")[0])
        whole, whole_truth = originals[number - 1]
        windows = sliding_window_view(whole, (8, 8, 3))[:, :, 0]
        [(top, left)] = np.argwhere((windows == noisy).all((2, 3, 4)))
        assert np.array_equal(truth, whole_truth[top : top + 8, left : left + 8])
        places.add((number, top, left))
    assert 10 < len(places) <= 15

    before = {path: path.read_bytes() for path in target.rglob("*.png")}
    with pytest.raises(SystemExit):
        cut(tmp_path / "SIDD", target)
    assert "holds 30 images already" in capsys.readouterr().err
    cut(tmp_path / "SIDD", target, "--overwrite")
    assert before == {path: path.read_bytes() for path in target.rglob("*.png")}

    precious = picture(target / "input" / "precious.png")
    with pytest.raises(SystemExit):
        cut(tmp_path / "SIDD", target, "--overwrite")
    assert (
        "1 images that this run would not replace" in capsys.readouterr().err and precious.exists()
    )
    assert len(list(target.rglob("*.png"))) == 31


def test_patches_from_the_arranged_images_and_several_cores_are_the_same(tmp_path):
    sidd(tmp_path / "SIDD")
    arrange("SIDD", tmp_path / "SIDD", tmp_path / "dest")
    cut(tmp_path / "SIDD", tmp_path / "one")
    (tmp_path / "dest" / "SIDD" / "train").rename(tmp_path / "dest" / "Data")
    cut(tmp_path / "dest", tmp_path / "two", "--num_cores", 2)
    for path in (tmp_path / "one").rglob("*.png"):
        assert is_copy(path, tmp_path / "two" / path.relative_to(tmp_path / "one"))


def test_unfit_images_are_refused_before_anything_is_cut(tmp_path, capsys):
    sidd(tmp_path / "SIDD")

    def refusal(*options):
        with pytest.raises(SystemExit) as exit_:
            cut(tmp_path / "SIDD", tmp_path / "train", *options)
        assert exit_.value.code == 2 and not (tmp_path / "train").exists()
        return capsys.readouterr().err

    line = refusal("--ps", 25)
    assert "smaller than a patch of 25×25 pixels" in line and " (30×24)" in line
    write_image(next((tmp_path / "SIDD").rglob("*GT*")), np.zeros((20, 20, 3), np.uint8))
    assert "differ in size" in refusal()
    assert "found no *NOISY*.PNG" in refusal("--src_dir", tmp_path / "empty")


def test_patches_leave_out_the_last_row_and_column_as_published(tmp_path):
    source = tmp_path / "SIDD" / "Data" / "scene"
    for kind in ("NOISY", "GT"):
        pixels = np.zeros((10, 12, 3), np.uint8)
        pixels[-1], pixels[:, -1] = 255, 255
        write_image(source / f"{kind}_SRGB_010.PNG", pixels)
    cut(tmp_path / "SIDD", tmp_path / "train", "--num_patches", 60)
    assert not any(read_rgb(path).any() for path in (tmp_path / "train").rglob("*.png"))
    cut(tmp_path / "SIDD", tmp_path / "whole", "--ps", 10)  # the only place there is
    assert all(read_rgb(path).any() for path in (tmp_path / "whole").rglob("*.png"))
