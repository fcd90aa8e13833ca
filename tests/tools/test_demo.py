import errno
import itertools
import json
import os
import re
import signal
import socket
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import small
from pictures import noise
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

import dgunet.images.photographs
import dgunet.scoring.results_folder
import dgunet.tools.restore as demo
from dgunet.images.files import read_image, read_rgb, write_image
from dgunet.inference.restorer import Restorer
from dgunet.model import pretrained as shipped
from dgunet.model.checkpoint import load_model, save_checkpoint
from dgunet.scoring.results_folder import read_settings
from dgunet.tools import figure, showcase


@pytest.fixture
def run(monkeypatch, capsys, weights, tmp_path):
    """Run the program on inputs (one, or a list), which must end with that exit code; return its
    errors and output. Results go to `out` in tmp_path. No network is to be had."""

    def no_network(*_):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # set back

    def run(inputs, *options, code=0, out="out", task="Denoising") -> str:
        arguments = ["--weights", weights[task]] if task else []
        arguments += ["--input_dir", *(inputs if isinstance(inputs, list) else [inputs])]
        arguments += ["--result_dir", tmp_path / out, "--device", "cpu", *options]
        ended = 0
        try:
            demo.main(list(map(str, arguments)))
        except SystemExit as end:
            ended = end.code
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err and ended == code
        return printed.err + printed.out

    return run


@pytest.fixture
def refused(run):
    """Run the program, which must end with a line; return it."""

    def refused(*arguments, **options):
        line = run(*arguments, code=2, **options)
        assert line.startswith("error: ") and line.count("\n") == 1
        return line

    return refused


def save(path, array=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(9, 12, 3) if array is None else array).save(path, **options)
    return path


@pytest.fixture
def album(tmp_path):
    """Write images of these names into a folder; return it."""

    def album(*names):
        folder = tmp_path / "photos"
        folder.mkdir()
        for name in names:
            save(folder / name)
        return folder

    return album


def files(folder):
    """The files below a folder, but for the settings and the lock; half-written ones would be among
    them."""
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(name for name in found if Path(name).name not in ("settings.json", ".lock"))


def test_a_photo_is_restored_as_by_the_network_alone(run, weights, tmp_path):
    save(tmp_path / "my photo.png", noise(21, 30, 3))
    assert run(tmp_path / "my photo.png").startswith(f"restored 1 image in {tmp_path}/out (")
    network, _ = load_model(weights["Denoising"])
    padded = np.pad(noise(21, 30, 3), ((0, 3), (0, 2), (0, 0)), mode="reflect") / np.float32(255)
    with torch.no_grad():
        image = network(torch.from_numpy(padded).permute(2, 0, 1)[None].contiguous())[0]
    expected = np.rint(image[0, :, :21, :30].clamp(0, 1).permute(1, 2, 0).numpy() * 255)
    assert np.array_equal(read_image(tmp_path / "out/my photo.png"), expected)
    settings = read_settings(tmp_path / "out")
    assert (settings["task"], settings["sizes"]["stages"]) == ("Denoising", 2)
    assert "unfinished" not in settings


def test_folders_keep_their_structure(run, album, tmp_path):
    photos = album("10.png", "2.PNG", "sub/deep/a.jpg", "sub/b.bmp", ".hidden/c.png", ".d.png")
    (photos / "notes.txt").write_text("no image")
    (photos / "photo.heic").write_bytes(b"....ftypheic")
    out = run(photos)
    assert files(tmp_path / "out") == ["10.png", "2.PNG"]
    assert "left out 2 of no known image format: " in out and ".heic 1" in out
    out = run(photos, "--recursive")
    assert "restored 2 images" in out and "skipped 2 that were restored before" in out
    assert files(tmp_path / "out") == ["10.png", "2.PNG", "sub/b.bmp", "sub/deep/a.jpg"]


def test_patterns_name_images(run, refused, tmp_path, monkeypatch):
    for name in ("one/x/1.png", "two/x/1.png", "two/y/[2].png", "two/y/2.png"):
        save(tmp_path / name)
    (tmp_path / "two/x/1.txt").write_text("no image")
    for name in ("one/round", "two/round"):
        (tmp_path / name).symlink_to(tmp_path)
    for pattern, out, found in (
        ("*/x/*", "out", ["one/x/1.png", "two/x/1.png"]),
        ("**/2.png", "deep", ["two/y/2.png"]),
        ("two/y/[2].png", "name", ["[2].png"]),
        ("one/**/*", "round", ["x/1.png"]),
    ):
        run(tmp_path / pattern, out=out)
        assert files(tmp_path / out) == found
    monkeypatch.chdir(tmp_path / "two/y")
    run(["*.png", "2.png"], out="here")
    assert files(tmp_path / "here") == ["2.png", "[2].png"]
    assert "*.jpg: found no image" in refused("*.jpg", out="none")
    assert not (tmp_path / "none").exists()


def animation(path):
    frames = [Image.fromarray(noise(8, 9, 3, seed=seed)) for seed in (0, 1)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def cut(path):
    data = save(path, noise(64, 64, 3)).read_bytes()
    path.write_bytes(data[: len(data) // 2])


BAD = [
    ("text.png", lambda path: path.write_text("hello"), "5 bytes of no known image format"),
    ("empty.jpg", lambda path: path.write_bytes(b""), "is empty (0 bytes)"),
    ("cut.jpg", cut, "cut short"),
    ("moving.png", animation, "is an animation of 2 images"),
    ("large.png", lambda path: save(path, noise(1001, 1000)), "1000×1001 pixels; expected at"),
    ("round.png", lambda path: path.symlink_to("round.png"), "symbolic links"),
    ("lost.png", lambda path: path.symlink_to("nowhere.png"), "does not exist; expected an image"),
]


def test_bad_files_do_not_stop_the_others(run, album, tmp_path):
    photos = album("a.png", "z.png")
    for name, make, _ in BAD:
        make(photos / name)
    out = run(photos, "--max_megapixels", "1", code=1)
    assert files(tmp_path / "out") == ["a.png", "z.png"]
    lines = dict(re.findall(rf"^failed: {photos}/(.*?): (.*)$", out, re.M))
    assert len(lines) == len(BAD)
    assert all(reason in lines[name] for name, _, reason in BAD)
    assert "restored 2 images" in out and f"failed {len(BAD)}: {photos}/" in out
    out = run(photos / "empty.jpg", code=2)  # alone, nothing could be done
    assert "is empty" in out and "restored 0 images" in out


def test_too_large_images_are_refused_with_the_way_out(run, tmp_path):
    path = save(tmp_path / "large.png", noise(1001, 1000))
    for limit, words in (("1", "1 megapixels (--max_megapixels lifts"), ("1e-9", "1e-09 megap")):
        out = run(path, "--max_megapixels", limit, code=2)
        assert f"1000×1001 pixels; expected at most {words}" in out
    header = bytearray(path.read_bytes())
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    path.write_bytes(header)
    assert "60000×60000 pixels; expected at most 250 megapixels" in run(path, code=2)


GOOD = {
    "palette.png": lambda path: Image.fromarray(noise(8, 9, 3)).quantize(8).save(path),
    "bit.png": lambda path: Image.fromarray(noise(8, 9) > 99).save(path),
    "one.png": lambda path: save(path, noise(1, 1, 3)),
    "thin.png": lambda path: save(path, noise(3, 5000, 3)),
    "strip.png": lambda path: save(path, noise(30_000, 8)),
    "deep.tif": lambda path: write_image(path, noise(8, 9, dtype=np.uint16)),
    "clear.png": lambda path: save(path, noise(8, 9, 4)),
}


def test_results_keep_depth_and_alpha(run, album, tmp_path):
    photos = album("it's ünïcödé – 写真 🙂.png", "x" * 251 + ".png")
    for name, make in GOOD.items():
        make(photos / name)
    assert run(photos).startswith("restored") and files(tmp_path / "out") == files(photos)
    for name in files(photos):
        before, after = (read_image(folder / name) for folder in (photos, tmp_path / "out"))
        assert (after.dtype, after.shape) == (before.dtype, before.shape)
        assert before.shape[2:] != (4,) or np.array_equal(before[..., 3], after[..., 3])


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_names_may_be_any_bytes_and_do_not_reach_the_terminal_as_they_are(run, tmp_path):
    photos = os.fsencode(tmp_path) + b"/photos"
    os.mkdir(photos)
    for name in (b"\xff\n.png", b"\x1b]0;title\x07\n.png", b"\xfe.png"):
        with open(photos + b"/" + name, "wb") as file:
            if name.startswith(b"\xff"):
                Image.fromarray(noise(8, 9)).save(file, "PNG")
    out = run(tmp_path / "photos", code=1)
    assert os.listdir(os.fsencode(tmp_path / "out")) != []
    assert all(map(str.isprintable, out.splitlines())) and r"\x1b]0;title\x07\n.png" in out


@pytest.mark.parametrize(
    "inputs, options, message",
    [
        ("missing", [], "missing: does not exist; expected an image, a folder"),
        ("empty", [], "empty: found no image (--recursive looks into"),
        ("photos", ["--tile", "64"], "tile is 64; expected auto, 0 or at least 192"),
        ("photos", ["--tile_overlap", "-1"], "tile overlap is -1"),
        ("photos", ["--device", "cuda:99"], "device 'cuda:99' is not available"),
        ("photos", ["--jobs", "0"], "jobs is 0; expected 1 or more"),
        ("photos", ["--max_megapixels", "nan"], "--max_megapixels is nan"),
        ("photos", ["--max_megapixels", "-1"], "--max_megapixels is -1.0; expected 0 or more"),
        ("photos", ["--task", "Deraining"], "this is a Denoising DGUNet checkpoint"),
        ("photos", ["--result_dir", "photos"], "would replace an image"),
        ("photos", ["--result_dir", "photos/a.png"], "is a file; expected a folder"),
        ("photos", ["--weights", "photos/a.png"], "not a readable checkpoint"),
        ("photos", ["--weights", "none.pth"], "does not exist; expected a checkpoint file"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(
    refused, album, tmp_path, monkeypatch, inputs, options, message
):
    monkeypatch.chdir(tmp_path)
    album("a.png")
    (tmp_path / "empty").mkdir()
    assert message in refused(inputs, *options)
    assert files(tmp_path) == ["photos/a.png"]


@pytest.fixture
def release(monkeypatch, tmp_path):
    """A stand-in for what ships: small random networks for all tasks but Deblurring."""
    root = tmp_path / "release"
    monkeypatch.setattr(shipped, "task_folder", lambda task: root / task)
    monkeypatch.setitem(shipped.TASKS, "Denoising", "small_gaussian25")
    records = {
        "Deraining": {"training": {"degradation": "rain_medium"}},
        "Denoising": {
            "trained_for": "Gaussian noise, σ = 25 of 255",
            "training": {"degradation": "gaussian25"},
        },
        "Compressive_Sensing": {"cs_ratio": 25},
    }
    for task, record in records.items():
        network, name = small(task, stages=3), shipped.TASKS[task]
        network.zero_image_convolutions()
        file = root / task / "pretrained_models" / f"{name}.safetensors"
        save_checkpoint(file, network)
        file.with_suffix(".json").write_text(json.dumps(record))
    return root


def test_a_task_has_default_weights(run, release, tmp_path):
    save(tmp_path / "a.png")
    results = {}
    for name, choice in {
        "task": ["--task", "Denoising"],
        "name": ["--weights", "small_gaussian25"],
        "path": ["--weights", release / "Denoising/pretrained_models/small_gaussian25.safetensors"],
    }.items():
        text = run(tmp_path / "a.png", *choice, out=name, task=None)
        line = "weights small_gaussian25: trained for synthetic Gaussian noise, σ = 25 of 255; of"
        assert f"{line} other degradations expect less\n" in text
        results[name] = read_image(tmp_path / name / "a.png")
        settings = read_settings(tmp_path / name)
        assert settings["weights"] == "small_gaussian25.safetensors"
    assert all(np.array_equal(result, results["task"]) for result in results.values())
    sensing = ("--task", "Compressive_Sensing")
    text = run(tmp_path / "a.png", *sensing, out="sensed", task=None)
    assert "trained for compressive sensing ratio 25 %" in text


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "--task or --weights is missing; expected --task Deblurring|"),
        (["--task", "Deblurring"], "Deblurring/pretrained_models/mixed_blur.safetensors: "),
        (["--weights", "small_blur"], "mixed_rain, small_gaussian25, DGUNet_25"),
        (["--weights", "DGUNet_25", "--task", "Denoising"], "this is a Compressive_Sensing DGUNet"),
    ],
)
def test_missing_weights_are_named(refused, release, tmp_path, options, message):
    assert message in refused(save(tmp_path / "a.png"), *options, task=None)


def test_the_showcase(release, tmp_path, capsys, monkeypatch):
    """Networks that change nothing restore what they are given."""
    monkeypatch.setattr(figure, "WIDTH", 3.0)
    photos = [save(tmp_path / f"{name}.png", noise(70, 90, 3)) for name in ("one", "chelsea")]
    out, copy = tmp_path / "out", tmp_path / "stages.jpg"
    showcase.showcase(out, photos, 64, [copy])
    text = capsys.readouterr().out
    assert f"left out: {release}/Deblurring/pretrained_models/mixed_blur.safetensors" in text
    rows = [[cell.strip("| ") for cell in line.split(" | ")] for line in text.splitlines()]
    rows = {row[0]: row[1:] for row in rows if len(row) == 6}
    assert list(rows)[-3:] == ["Deraining", "Denoising", "Compressive_Sensing"]
    for task in ("Deraining", "Denoising"):
        target = read_rgb(out / task / "target/one.png")
        assert np.array_equal(target, noise(70, 90, 3)[3:67, 13:77])
        degraded = read_rgb(out / task / "input/one.png")
        assert np.array_equal(read_rgb(out / task / "restored/one.png"), degraded)
        scores = [
            peak_signal_noise_ratio(read_rgb(path), read_rgb(out / task / "target" / path.name))
            for path in (out / task / "input").iterdir()
        ]
        assert rows[task][2].startswith(f"{np.mean(scores):.2f} / ")
        assert rows[task][1:2] + rows[task][4:] == ["2", "+0.00"]
    assert rows["Compressive_Sensing"][0] == "compressive sensing ratio 25 %"
    assert read_image(out / "Compressive_Sensing/restored/one.png").shape == (64, 64)
    drawn, jpeg = read_rgb(out / "stages.png"), read_rgb(copy)
    assert drawn.shape == jpeg.shape and copy.stat().st_size <= 400_000
    assert np.abs(drawn.astype(int) - jpeg).mean() < 16
    showcase.restore_task("Denoising", photos, out / "Denoising", 64)  # over what is there


def test_a_showcase_of_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(shipped, "task_folder", lambda task: tmp_path / task)
    with pytest.raises(SystemExit) as end:
        showcase.main(["--output", str(tmp_path / "out")])
    assert end.value.code == 2 and "none of the default weights" in capsys.readouterr().err


def test_of_two_images_with_one_result_the_second_fails(run, tmp_path):
    x, y = tmp_path / "x", tmp_path / "y"
    for path in (x / "a.png", y / "a.png", y / "b.png"):
        save(path, noise(8, 9))
    out = run([x, y], code=1)
    assert files(tmp_path / "out") == ["a.png", "b.png"]
    assert f"failed: {y}/a.png: its result, " in out and "failed 1: " in out
    assert f"would replace that of {x}/a.png" in out
    out = run([x, x / "a.png"], out="twice")  # an image named twice is one image
    assert "restored 1 image " in out


def test_results_inside_the_input_folder_are_no_inputs(run, tmp_path):
    save(tmp_path / "a.png")
    for name, *options in ([tmp_path, "--recursive"], [f"{tmp_path}/**/*.png"], [f"{tmp_path}/*"]):
        run(name, *options)
        assert files(tmp_path / "out") == ["a.png"]


def test_results_cannot_leave_their_folder(run, album, tmp_path, monkeypatch):
    photos = album("sub/a.png", "sub/b.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sub").symlink_to(tmp_path / "elsewhere")
    assert "would lie outside" in run(photos, "--recursive", code=2)
    assert files(tmp_path / "elsewhere") == []
    monkeypatch.chdir(photos)
    save(tmp_path / "x/1.png")
    assert "would lie outside" in run("su*/../../x/*.png", out="deep/up", code=2)
    assert files(tmp_path / "deep") == []
    # A link in a result's place is replaced, what it points to stays.
    precious = save(tmp_path / "precious.png")
    before = precious.read_bytes()
    (tmp_path / "link").mkdir()
    (tmp_path / "link/a.png").symlink_to(precious)
    run("sub/a.png", "--overwrite", out="link")
    assert precious.read_bytes() == before
    assert not (tmp_path / "link/a.png").is_symlink()


def test_a_run_goes_on_where_it_stopped(run, refused, album, tmp_path):
    photos, out = album("a.png", "b.png", "c.png"), tmp_path / "out"
    run(photos)
    first = {name: (out / name).stat().st_mtime_ns for name in files(out)}
    (out / "b.png").unlink()
    text = run(photos)
    assert "restored 1 image " in text and "skipped 2 that" in text
    assert (out / "a.png").stat().st_mtime_ns == first["a.png"] and (out / "b.png").exists()
    # An image that was edited since is restored again.
    later = time.time() + 10
    os.utime(photos / "c.png", (later, later))
    assert "restored 1 image " in run(photos)
    os.utime(photos / "c.png", (0, 0))
    text = run(photos)
    assert "restored 0 images" in text and "skipped 3 that" in text
    assert "restored 3 images" in run(photos, "--overwrite")
    line = refused(photos, "--self_ensemble")
    assert "self_ensemble False (now True)" in line and "--overwrite" in line
    (out / "settings.json").unlink()
    assert "exist, without the settings.json of this program" in refused(photos)


def test_an_interrupted_run_goes_on(run, album, tmp_path, monkeypatch, request):
    """… also one that overwrites: it takes no result for done that is from before."""
    # Where the tests run in a shell's background, the signal is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    photos, out = album("a.png", "b.png", "c.png", "d.png"), tmp_path / "out"
    restore = Restorer.__call__
    run(photos, "--self_ensemble")
    contents = {name: (out / name).read_bytes() for name in files(out)}
    time.sleep(0.1)
    images = iter("ab")

    def interrupted(self, image):
        if next(images) == "b":
            signal.raise_signal(signal.SIGINT)
        return restore(self, image)

    monkeypatch.setattr(Restorer, "__call__", interrupted)
    text = run(photos, "--overwrite", code=130)
    assert "restored 1 image " in text
    assert "the same command, without --overwrite, goes on from here" in text
    assert read_settings(out)["unfinished"] is True
    monkeypatch.setattr(Restorer, "__call__", restore)
    text = run(photos)
    assert "restored 3 images" in text and "skipped 1 " in text
    assert all((out / name).read_bytes() != content for name, content in contents.items())
    assert "skipped 4 " in run(photos)


def full_disk(monkeypatch, module, name, is_full):
    """Make a function that writes a file fail where `is_full` of its number, from 0, and path."""
    numbers, write = itertools.count(), getattr(module, name)

    def write_or_fail(path, content):
        if is_full(next(numbers), path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, content)

    monkeypatch.setattr(module, name, write_or_fail)


def test_a_full_disk_stops_the_run(run, album, tmp_path, monkeypatch):
    photos, out = album(*(f"{index}.png" for index in range(9))), tmp_path / "out"
    full_disk(
        monkeypatch, dgunet.images.photographs, "write_bytes", lambda _, path: path.stem != "0"
    )
    text = run(photos, "--jobs", "1", code=1)
    assert "No space left on device" in text and "restored 1 image " in text
    failed = text.count("failed: ")
    assert 1 <= failed <= 4 and files(out) == ["0.png"] and f"not tried: {8 - failed}" in text


@pytest.mark.parametrize("restored", [0, 1])
def test_a_disk_that_is_full_before_or_after_is_told_in_a_line(
    run, tmp_path, monkeypatch, restored
):
    save(tmp_path / "a.png")
    module = dgunet.scoring.results_folder
    full_disk(monkeypatch, module, "write_settings", lambda number, _: number == restored)
    line, text = run(tmp_path / "a.png", code=2).split("\n", 1)
    assert line == f"error: {tmp_path}/out: {os.strerror(errno.ENOSPC)}"
    assert text.startswith(f"restored {restored} image")


def test_a_denied_file_fails_alone_and_a_denied_folder_ends_the_run(run, album, monkeypatch):
    """As told by the system; a test that runs as root could not be denied anything."""
    photos = album("a.png", "b.png")
    read, make = Path.read_bytes, Path.mkdir

    def denied(path, *arguments, **options):
        if path.name in ("a.png", "locked"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return (read if path.suffix else make)(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert f"failed: {photos}/a.png: Permission denied" in run(photos, code=1)
    monkeypatch.setattr(Path, "mkdir", denied)
    line = run(photos, out="locked", code=2)
    assert line.startswith("error: ") and "Permission denied" in line


def test_stages_are_written_with_a_contact_sheet(run, weights, tmp_path):
    save(tmp_path / "a.png", noise(40, 56, 3))
    out = tmp_path / "out"
    run(tmp_path / "a.png", "--stages")
    folder = "a.png.stages"
    assert files(out) == ["a.png", *(f"{folder}/{n}.png" for n in ("1", "2", "contact_sheet"))]
    first, last = (read_image(out / folder / f"{number}.png") for number in (1, 2))
    assert np.array_equal(last, read_image(out / "a.png")) and not np.array_equal(first, last)
    restorer = Restorer.from_checkpoint(weights["Denoising"], device="cpu")
    assert np.array_equal(first, restorer.stages(noise(40, 56, 3))[0])
    for name in ("outside", "link"):
        (tmp_path / name).mkdir()
    (tmp_path / "link" / folder).symlink_to(tmp_path / "outside")
    assert "is a link" in run(tmp_path / "a.png", "--stages", out="link", code=2)
    assert files(tmp_path / "outside") == []
    sheet = read_image(out / folder / "contact_sheet.png")
    assert sheet.shape[1] == 1500 and sheet[-100:].std() > 30  # three pictures below a caption


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_compressive_sensing_measures_each_channel(run, weights, tmp_path, mode):
    picture = Image.fromarray(noise(40, 70, 3)).convert(mode)
    picture.save(tmp_path / "a.png")
    out = run(tmp_path / "a.png", task="Compressive_Sensing")
    channels = len(picture.getbands())
    values, numbers = channels * 40 * 70, channels * 2 * 3 * 256  # 25 % of six blocks of 32×32
    assert f"measured {numbers:,} numbers in place of {values:,} pixel values" in out
    result = np.asarray(Image.open(tmp_path / "out/a.png"))
    restorer = Restorer.from_checkpoint(weights["Compressive_Sensing"], device="cpu")
    if mode == "RGB":
        each = [restorer(np.asarray(channel)) for channel in picture.split()]
        np.testing.assert_allclose(result, np.dstack(each), atol=1)
    assert result.shape == np.asarray(picture).shape
    out = run(tmp_path / "a.png", "--self_ensemble", task="Compressive_Sensing", code=2)
    assert "would measure every image eight times" in out


def test_options_reach_the_network(run, tmp_path):
    save(tmp_path / "a.png", noise(40, 200, 3))
    results = {}
    for name, options in {
        "plain": [],
        "tiled": ["--tile", "192"],
        "wide": ["--tile", "192", "--tile_overlap", "16"],
        "ensemble": ["--self_ensemble"],
        "local": ["--local_statistics", "64"],
        "bf16": ["--precision", "bf16"],
    }.items():
        run(tmp_path / "a.png", *options, out=name)
        results[name] = read_image(tmp_path / name / "a.png").astype(int)
    for name, result in results.items():
        difference = np.abs(result - results["plain"])
        assert (difference.max() > 0) == (name != "plain") and difference.mean() < 10


def test_no_result_lies_among_the_stages_of_another(run, refused, album, tmp_path):
    photos, out = album("a.png"), tmp_path / "out"
    save(photos / "a.png.stages" / "1.png", noise(7, 8, 3))
    text = run(photos, "--recursive", "--stages", code=1)
    assert "restored 1 image" in text
    assert f"would lie among the stages of {photos}/a.png" in text
    assert read_image(out / "a.png.stages" / "1.png").shape == (9, 12, 3)
    before = files(photos)
    run(photos / "a.png.stages", out="photos/x")
    refused([out / "a.png", out / "a.png.stages"], "--stages")
    run([photos / "a.png", photos / "a.png.stages"], out="photos/y")
    assert set(before) <= set(files(photos))


@pytest.mark.skipif(os.name != "posix", reason="pipes with a name")
def test_only_regular_files_are_opened(run, album):
    photos = album("a.png")
    os.mkfifo(photos / "pipe.png")
    (photos / "full.png").symlink_to("/dev/full")
    (photos / "again.png").symlink_to("a.png")
    text = run(photos, code=1)
    assert "restored 1 image" in text
    for name in ("pipe", "full"):
        assert f"failed: {photos}/{name}.png: is no regular file" in text
    assert re.search(f"left out other names of the same files: {photos}/(again|a).png", text)


@pytest.mark.parametrize(
    "content",
    ['{"editor": "dark"}', "[" * 10**5, "[1]", "9" * 5000],
)
def test_odd_settings_are_told_in_a_line(refused, tmp_path, content):
    save(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/settings.json").write_text(content)
    assert len(refused(tmp_path / "a.png")) < 1000
