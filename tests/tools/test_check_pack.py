"""The commands that check and pack a data folder."""

import h5py
import numpy as np
import pytest
from pictures import noise

from dgunet.base.errors import InputError
from dgunet.data import packed
from dgunet.images.files import write_image
from dgunet.tools import check
from dgunet.tools import pack as packing

SIZES = [(40, 50), (600, 500), (30, 20)]


@pytest.fixture
def folder(tmp_path):
    for number, size in enumerate(SIZES):
        for part, seed in (("target", number), ("input", number + 10)):
            image = noise(*size, 3, seed=seed)
            write_image(tmp_path / "data" / part / f"picture {number}.png", image)
    return tmp_path / "data"


def cut_in_half(file):
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def test_a_good_folder_has_no_problems(folder, run):
    folder.rename(folder.with_name("\x1b[2J"))
    out = run(check, folder.parent, "--jobs", 2)  # found below the folder given
    assert rf"{folder.parent}/\x1b[2J: 3 pairs (2 of 50×40 RGB, 8 bits, 2 of 500×600" in out
    assert "0 problems" in out


def test_every_kind_of_problem_is_listed(folder, capsys):
    cut_in_half(folder / "input" / "picture 0.png")
    for name, image in (
        ("target/picture 1.png", noise(600, 499, 3)),
        ("target/picture 2.jpg", noise(30, 20, 3)),
        ("input/picture 3.png", noise(8, 8, 3)),
        ("target/picture 4.png", noise(8, 8, 3)),
        ("input/picture 5.png", noise(8, 8, 3)),
        ("target/picture 5.png", noise(8, 8)),
        ("input/picture 6.png", noise(8, 8, dtype=np.uint16)),
        ("target/picture 6.png", noise(8, 8)),
    ):
        write_image(folder / name, image)
    with pytest.raises(SystemExit):
        check.main([str(folder)])
    captured = capsys.readouterr()
    problems = [line for line in captured.out.splitlines() if line.startswith("  ")]
    expected = [
        ("input/picture 0.png", "cut short"),
        ("input/picture 1.png", "500×600", "499×600"),
        ("target/picture 2.png", "same name", "picture 2.jpg"),
        ("input/picture 3.png", "no partner", "target/"),
        ("target/picture 4.png", "no partner", "input/"),
        ("input/picture 5.png", "RGB", "its target 8×8 grey"),
        ("input/picture 6.png", "16 bits", "8 bits"),
    ]
    assert len(problems) == len(expected)
    for words in expected:
        assert any(all(word in problem for word in words) for problem in problems), words
    assert captured.err.splitlines()[-1] == f"error: {folder}: 7 problems, listed above"


def test_photographs_alone_are_checked_and_packed_too(folder, tmp_path):
    assert check.find_sets(folder / "input") == [folder / "input"]
    found, problems = check.check_folder(folder / "input", jobs=1)
    assert found.startswith("3 images (") and problems == []
    assert packing.pack(folder / "input", tmp_path / "photographs.h5") == 3
    assert not packed.read_index(tmp_path / "photographs.h5")[2]


def test_a_missing_part_is_a_problem(folder):
    for file in (folder / "target").iterdir():
        file.unlink()
    _, problems = check.check_folder(folder, jobs=1)
    assert any("holds no image" in problem for problem in problems)
    assert len(problems) == 4


def test_a_packed_file_holds_the_pixels(folder, tmp_path, run):
    file = tmp_path / "new" / "pairs.h5"
    assert "3 pairs, 2 MiB" in run(packing, folder, file, "--jobs", 2)
    names, sizes, paired = packed.read_index(file)
    assert names == ["picture 0", "picture 1", "picture 2"] and sizes == SIZES and paired
    with h5py.File(file) as content:
        assert content.attrs["format"] == b"dgunet-pairs" and content.attrs["version"] == 1
        for number, (height, width) in enumerate(sizes):
            for kind, seed in (("target", number), ("degraded", number + 10)):
                stored = content[f"{kind}/{number:06d}"]
                assert np.array_equal(stored[...], noise(height, width, 3, seed=seed))
                assert stored.compression is None
        assert content["target/000001"].chunks == (64, 64, 3)
    assert [path.name for path in file.parent.iterdir()] == ["pairs.h5"]


def test_an_existing_file_is_kept(folder, tmp_path, run):
    file = tmp_path / "pairs.h5"
    file.write_bytes(b"\x89HDF precious")
    assert "exists already" in run(packing, folder, file)
    assert file.read_bytes() == b"\x89HDF precious"
    run(packing, folder, file, "--overwrite")
    assert len(packed.read_index(file)[0]) == 3


def test_a_failed_run_leaves_nothing(folder, tmp_path):
    cut_in_half(folder / "input" / "picture 2.png")
    with pytest.raises(InputError, match=r"picture 2\.png.*cut short"):
        packing.pack(folder, tmp_path / "out" / "pairs.h5")
    write_image(folder / "input" / "picture 2.png", noise(30, 21, 3))
    with pytest.raises(InputError, match=r"picture 2\.png: 21×30 pixels.*20×30"):
        packing.pack(folder, tmp_path / "out" / "pairs.h5")
    (folder / "input" / "picture 2.png").unlink()
    with pytest.raises(InputError, match="without a partner"):
        packing.pack(folder, tmp_path / "out" / "pairs.h5")
    with pytest.raises(InputError, match="ends in"):
        packing.pack(folder, tmp_path / "out" / "pairs.zip")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("jobs", [0, -2])
def test_jobs_are_at_least_one(folder, tmp_path, jobs, run):
    assert f"jobs is {jobs}" in run(check, folder, "--jobs", jobs)
    assert f"jobs is {jobs}" in run(packing, folder, tmp_path / "a.h5", "--jobs", jobs)


def test_foreign_and_truncated_files_are_refused(folder, tmp_path):
    packing.pack(folder, tmp_path / "cut.h5")
    cut_in_half(tmp_path / "cut.h5")
    with h5py.File(tmp_path / "foreign.h5", "w") as foreign:
        foreign["data"] = np.zeros(3)
    (tmp_path / "text.h5").write_text("hello")
    for name, message in (
        ("cut", "not HDF5, or cut short"),
        ("foreign", "expected dgunet-pairs, version 1"),
        ("text", "not HDF5"),
        ("missing", "does not exist"),
    ):
        with pytest.raises(InputError, match=rf"{name}\.h5: .*{message}"):
            packed.read_index(tmp_path / f"{name}.h5")
