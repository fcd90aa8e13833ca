"""Releases of the datasets, as tiny trees, arranged into the folders that the programs read; and
the patches cut from SIDD."""

import itertools

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from pictures import noise
from scipy.io import savemat

from dgunet.base.errors import InputError
from dgunet.base.files import write_bytes
from dgunet.Denoising import generate_patches_SIDD
from dgunet.images.files import pair_by_name, read_rgb, write_image
from dgunet.tools import arrange as arranging
from dgunet.tools.arrange import arrange

SCENE = "0001_001_S6_00100_00060_3200_L"
REALBLUR = "RealBlur-J_ECC_IMCORR_centroid_itensity_ref"
SEEDS = itertools.count(1)


@pytest.fixture
def source(tmp_path):
    return tmp_path / "source"


@pytest.fixture
def dest(tmp_path):
    return tmp_path / "dest"


@pytest.fixture
def refused(source, tmp_path, run):
    """Arrange a dataset by the program; return the line of its refusal."""

    def refused(dataset, source=source, dest=tmp_path / "refused"):
        line = run(arranging, dataset, source, dest)
        assert line.startswith("error: ") and not (tmp_path / "refused").exists()
        return line

    return refused


def picture(path):
    """Write a small image that no other file equals."""
    write_image(path, noise(24, 30, 3, seed=next(SEEDS)))
    return path


def is_copy(first, second):
    return first.read_bytes() == second.read_bytes()


def gopro(source):
    for scene in ("train/GOPR0372_07_00", "train/GOPR0374_11_00", "test/G3"):
        for kind in ("blur", "blur_gamma", "sharp"):
            for number in (1, 2):
                picture(source / "GOPRO_Large" / scene / kind / f"00000{number}.png")


def hide(source):
    for place in ("test/test-close-ups/1from.png", "test/test-long-shot/2from.png", "train/9.png"):
        picture(source / place)
        picture(source / "GT" / place.rpartition("/")[2])


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


def rain13k(source):
    for folder in ("train/Rain13K", "test/Rain100L", "test/Test1200"):
        for part, suffix in (("input", "jpg"), ("target", "JPG")):
            for number in (1, 2):
                picture(source / folder / part / f"{number}.{suffix}")


def sidd(source):
    for kind in ("NOISY", "GT"):
        for number in ("010", "011"):
            picture(source / "Data" / SCENE / f"0001_{kind}_SRGB_{number}.PNG")
        picture(source / "Data" / "0002_001_S6" / f"{kind}_SRGB_010.PNG")


def dnd(source):
    for name in ("info", *(f"images_srgb/{number:04d}" for number in range(1, 51))):
        write_bytes(source / "dnd_2017" / f"{name}.mat", name.encode())


@pytest.mark.parametrize(
    ("dataset", "make", "count", "places"),
    [
        ("GoPro", gopro, 16, {
            "train/input/GOPR0374_11_00-000002.png": "train/GOPR0374_11_00/blur/000002.png",
            "val/target/G3-000002.png": "test/G3/sharp/000002.png",
            "GoPro/test/input/G3-000001.png": "test/G3/blur/000001.png",
        }),
        ("HIDE", hide, 4, {
            "HIDE/test/input/1from.png": "test/test-close-ups/1from.png",
            "HIDE/test/input/2from.png": "test/test-long-shot/2from.png",
            "HIDE/test/target/1from.png": "GT/1from.png",
        }),
        ("RealBlur_J", realblur, 12, {
            "RealBlur_J/test/input/scene002-blur_1.png": f"{REALBLUR}/scene002/blur/blur_1.png",
            "RealBlur_J/test/target/scene002-blur_1.png": f"{REALBLUR}/scene002/gt/gt_1.png",
            "RealBlur_J/train/target/scene003-blur_2.png": f"{REALBLUR}/scene003/gt/gt_2.png",
        }),
        ("Rain13k", rain13k, 16, {
            "train/target/2.jpg": "train/Rain13K/target/2.JPG",
            "val/target/1.jpg": "test/Rain100L/target/1.JPG",
            "Test1200/input/1.jpg": "test/Test1200/input/1.jpg",
        }),
        ("SIDD", sidd, 6, {
            f"SIDD/train/input/{SCENE}-0001_011.png": f"Data/{SCENE}/0001_NOISY_SRGB_011.PNG",
            f"SIDD/train/target/{SCENE}-0001_011.png": f"Data/{SCENE}/0001_GT_SRGB_011.PNG",
            "SIDD/train/target/0002_001_S6-010.png": "Data/0002_001_S6/GT_SRGB_010.PNG",
        }),
        ("DND", dnd, 51, {
            "DND/test/info.mat": "dnd_2017/info.mat",
            "DND/test/images_srgb/0050.mat": "dnd_2017/images_srgb/0050.mat",
        }),
    ],
)  # fmt: skip
def test_images_are_linked_to_where_the_programs_read_them(
    source, dest, dataset, make, count, places
):
    make(source)
    counts = arrange(dataset, source, dest)
    placed = [path for path in dest.rglob("*") if path.is_file()]
    assert len(placed) == sum(counts.values()) == count
    release = source / "GOPRO_Large" if dataset == "GoPro" else source
    for place, original in places.items():
        assert (dest / place).samefile(release / original)


def test_gopro_has_two_kinds_of_blur(source, dest):
    gopro(source)
    arrange("GoPro", source, dest, gamma=True)
    original = source / "GOPRO_Large/test/G3/blur_gamma/000001.png"
    assert original.samefile(dest / "GoPro/test/input/G3-000001.png")


def test_nothing_is_overwritten_and_a_second_run_goes_on(source, dest):
    gopro(source)
    placed = picture(dest / "GoPro/test/target/G3-000001.png")
    precious = placed.read_bytes()
    with pytest.raises(InputError, match=r"1 files with other content .*G3-000001\.png"):
        arrange("GoPro", source, dest)
    assert placed.read_bytes() == precious and not (dest / "train").exists()

    placed.unlink()
    counts = arrange("GoPro", source, dest, copy=True)
    placed.unlink()
    assert arrange("GoPro", source, dest) == counts and placed.exists()


def test_copies_are_made_where_links_cannot_be(source, dest, monkeypatch):
    def no_links(*_):
        raise OSError("no hard links here")

    gopro(source)
    monkeypatch.setattr("os.link", no_links)
    arrange("GoPro", source, dest)
    original = source / "GOPRO_Large/test/G3/sharp/000001.png"
    placed = dest / "GoPro/test/target/G3-000001.png"
    assert is_copy(original, placed) and not placed.samefile(original)


@pytest.mark.parametrize(
    ("dataset", "make", "lost", "message"),
    [
        ("HIDE", hide, "GT/2from.png", "1 images of HIDE have no image in GT: "),
        ("RealBlur_J", realblur, f"{REALBLUR}/scene003/gt/gt_1.png", "list.txt: lists 'RealBlur"),
        ("SIDD", sidd, f"Data/{SCENE}/0001_GT_SRGB_010.PNG", "1 files missing, each ground truth"),
        ("DND", dnd, "dnd_2017/images_srgb/0007.mat", "1 files missing of DND"),
    ],
)
def test_missing_files_are_named(source, refused, dataset, make, lost, message):
    make(source)
    (source / lost).unlink()
    assert message in refused(dataset)


@pytest.mark.parametrize("way", ["relative", "absolute", "linked list", "linked image"])
def test_nothing_outside_the_source_is_read(source, tmp_path, refused, way):
    secret = picture(tmp_path / "outside" / "secret.png")
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


def test_links_out_of_the_source_are_refused_without_a_list_too(source, tmp_path, refused):
    secret = picture(tmp_path / "outside" / "secret.png")
    picture(source / "Rain100L" / "target" / "1.png")
    (source / "Rain100L" / "input").mkdir()
    (source / "Rain100L" / "input" / "1.png").symlink_to(secret)  # for Rain100L and val
    assert f"2 files are links out of {source}: " in refused("Rain13k")


def test_lists_and_blocks_that_are_damaged_are_named(source, refused):
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


def test_blocks_of_sidd_are_validated_on(source, dest):
    sidd(source)
    blocks = noise(2, 3, 8, 8, 3)
    for number, name in enumerate(["ValidationNoisyBlocksSrgb", "ValidationGtBlocksSrgb"]):
        savemat(source / f"{name}.mat", {name: blocks + number})
    counts = arrange("SIDD", source, dest)
    assert counts[dest / "SIDD" / "test"] == 2 and counts[dest / "val" / "input"] == 6
    assert np.array_equal(read_rgb(dest / "val" / "input" / "0002_03.png"), blocks[1, 2])
    assert np.array_equal(read_rgb(dest / "val" / "target" / "0001_02.png"), blocks[0, 1] + 1)


@pytest.mark.parametrize("dataset", arranging.DATASETS)
def test_an_unknown_layout_is_one_line(dataset, source, refused):
    picture(source / "something" / "else.png")
    assert f"{source}: unknown layout; looked, at any depth, for " in refused(dataset)


def test_wrong_arguments_are_refused(source, tmp_path, refused):
    gopro(source)
    assert "does not exist" in refused("GoPro", tmp_path / "missing")
    assert "apart" in refused("GoPro", dest=source / "dest")


@pytest.fixture
def cut(run, source):
    """Cut patches of SIDD; return what the program prints."""

    def cut(target, *options, source=source):
        arguments = ["--src_dir", source / "Data", "--tar_dir", target, "--ps", 8]
        arguments += ["--num_patches", 5, "--num_cores", 1, *options]
        return run(generate_patches_SIDD, *arguments)

    return cut


def test_patches_of_sidd(source, dest, cut):
    sidd(source)
    assert "15 pairs from 3 images" in cut(dest)
    originals = [
        [read_rgb(source / "Data" / name.format(kind)) for kind in ("NOISY", "GT")]
        for name in (
            f"{SCENE}/0001_{{}}_SRGB_010.PNG",
            f"{SCENE}/0001_{{}}_SRGB_011.PNG",
            "0002_001_S6/{}_SRGB_010.PNG",
        )
    ]
    places = set()
    for paths in pair_by_name(dest / "input", dest / "target"):
        noisy, truth = map(read_rgb, paths)
        number = int(paths[0].stem.split("_")[0])
        whole, whole_truth = originals[number - 1]
        windows = sliding_window_view(whole, (8, 8, 3))[:, :, 0]
        [(top, left)] = np.argwhere((windows == noisy).all((2, 3, 4)))
        assert np.array_equal(truth, whole_truth[top : top + 8, left : left + 8])
        places.add((number, top, left))
    assert 10 < len(places) <= 15

    before = {path: path.read_bytes() for path in dest.rglob("*.png")}
    assert "holds 30 images already" in cut(dest)
    cut(dest, "--overwrite")
    assert before == {path: path.read_bytes() for path in dest.rglob("*.png")}

    precious = picture(dest / "input" / "precious.png")
    line = cut(dest, "--overwrite")
    assert "1 images that this run would not replace" in line and precious.exists()
    assert len(list(dest.rglob("*.png"))) == 31


def test_patches_from_the_arranged_images_and_several_cores_are_the_same(
    source, dest, tmp_path, cut
):
    sidd(source)
    arrange("SIDD", source, dest)
    cut(tmp_path / "one")
    (dest / "SIDD" / "train").rename(dest / "Data")
    cut(tmp_path / "two", "--num_cores", 2, source=dest)
    for path in (tmp_path / "one").rglob("*.png"):
        assert is_copy(path, tmp_path / "two" / path.relative_to(tmp_path / "one"))


def test_unfit_images_are_refused_before_anything_is_cut(source, dest, cut):
    sidd(source)
    line = cut(dest, "--ps", 25)
    assert "smaller than a patch of 25×25 pixels" in line and " (30×24)" in line
    write_image(next(source.rglob("*GT*")), noise(20, 20, 3))
    assert "differ in size" in cut(dest)
    assert "found no *NOISY*.PNG" in cut(dest, source=source / "empty")
    assert not dest.exists()


def test_patches_leave_out_the_last_row_and_column_as_published(source, dest, tmp_path, cut):
    for kind in ("NOISY", "GT"):
        pixels = np.zeros((10, 12, 3), np.uint8)
        pixels[-1], pixels[:, -1] = 255, 255
        write_image(source / "Data" / "scene" / f"{kind}_SRGB_010.PNG", pixels)
    cut(dest, "--num_patches", 60)
    assert not any(read_rgb(path).any() for path in dest.rglob("*.png"))
    cut(tmp_path / "whole", "--ps", 10)  # the only place there is
    assert all(read_rgb(path).any() for path in (tmp_path / "whole").rglob("*.png"))
