"""Compressive sensing: measurement files, reconstruction, and test.py's scores."""

import csv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import smooth
from PIL import Image
from sensing import alone, network

from dgunet.base.errors import InputError
from dgunet.Compressive_Sensing import measure as measuring
from dgunet.Compressive_Sensing import reconstruct as reconstructing
from dgunet.Compressive_Sensing import test
from dgunet.Compressive_Sensing.measure import (
    Measurements,
    measure,
    quantize,
    read_measurements,
    write_measurements,
)
from dgunet.Compressive_Sensing.reconstruct import reconstruct
from dgunet.images.files import read_image, write_image
from dgunet.model.checkpoint import save_checkpoint
from dgunet.scoring.protocols import compressive_sensing_y
from dgunet.scoring.results_folder import read_settings


@pytest.mark.parametrize("shape", [(1, 32, 32), (1, 45, 97), (3, 70, 31)])
def test_a_file_reconstructs_to_what_the_network_makes_of_the_image(shape, tmp_path):
    model, image = network(), torch.rand(shape)
    write_measurements(tmp_path / "y.npz", measure(model, image))
    measurements = read_measurements(tmp_path / "y.npz")
    assert measurements.y.shape == (shape[0], 103, -(-shape[1] // 32), -(-shape[2] // 32))
    restored = reconstruct(model, measurements)[0]
    direct = np.stack([alone(model, plane) for plane in image.numpy()])
    assert restored.shape == shape
    np.testing.assert_allclose(restored, direct, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 4, 8, 12, 16])
def test_quantization_is_to_the_nearest_level(bits, tmp_path):
    measurements = measure(network(), torch.rand(1, 64, 96))
    numbers, _, step = quantize(measurements.y, bits)
    assert numbers.dtype == (np.uint8 if bits <= 8 else np.uint16)
    assert numbers.max() == 2**bits - 1 and numbers.min() == 0
    write_measurements(tmp_path / "y.npz", measurements, bits)
    error = (read_measurements(tmp_path / "y.npz").y - measurements.y).abs().amax((0, 2, 3))
    assert (error <= torch.from_numpy(step) * 0.51 + 1e-6).all()
    constant = quantize(torch.full((1, 3, 2, 2), 0.5), bits)
    assert not constant[0].any() and (constant[1] == 0.5).all()


def test_noise_is_seeded_and_of_the_strength_given():
    model, image = network(50), torch.rand(1, 128, 128)
    clean, noisy, again = (measure(model, image, noise=s).y for s in (0, 12.75, 12.75))
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, measure(model, image, noise=12.75, seed=1).y)
    assert (noisy - clean).std().item() == pytest.approx(0.05, rel=0.03)
    assert abs((noisy - clean).mean().item()) < 0.002


def test_unusable_files_are_refused_in_one_line(tmp_path):
    model = network()
    write_measurements(tmp_path / "good.npz", measure(model, torch.rand(1, 40, 40)))
    write_measurements(tmp_path / "coded.npz", measure(model, torch.rand(1, 40, 40)), bits=8)
    good, coded = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("good", "coded"))
    broken = np.where(np.arange(103)[:, None, None] == 7, np.nan, good["y"]).astype(np.float32)
    for fields, message in (
        (good | {"y": broken}, "4 of the 412 measurements are not finite"),
        (good | {"y": good["y"][:, :50]}, "y is 1×50×2×2, expected 1×103×2×2"),
        (good | {"y": good["y"][0]}, "y is 103×2×2"),
        (good | {"height": 70}, "expected 1×103×3×2 .* for ratio 10 and 70×40 pixels"),
        (good | {"height": -1}, "height is -1, expected a whole number, 1 or more"),
        (good | {"width": 40.5}, r"width is 40\.5, expected a whole number"),
        (good | {"ratio": 101}, "ratio is 101, expected a percentage"),
        (good | {"version": 2}, "version is 2, expected 1"),
        (good | {"y": good["y"].astype(str)}, "y is <U"),
        (good | {"y": good["y"].astype(complex)}, "y is complex128, expected numbers"),
        (good | {"y": np.full((1, 103, 2, 2), 1e300)}, "412 of the 412 .* are not finite"),
        (coded | {"step": coded["step"] * np.nan}, "412 of the 412 measurements are not finite"),
        (coded | {"step": coded["step"][:9]}, "y is uint8, expected 103 values of offset and of"),
        ({k: v for k, v in coded.items() if k != "offset"}, "expected 103 values of offset"),
        ({k: v for k, v in good.items() if k not in ("y", "phi")}, "holds no y, phi; expected"),
        (good | {"y": np.array([object()])}, "not a readable measurement file .*pickle"),
    ):
        np.savez(tmp_path / "bad.npz", **fields)
        with pytest.raises(InputError, match=message) as caught:
            read_measurements(tmp_path / "bad.npz")
        assert str(caught.value).startswith(f"{tmp_path}/bad.npz: ")
        assert "\n" not in str(caught.value)
    content = (tmp_path / "good.npz").read_bytes()
    np.save(tmp_path / "y.npy", good["y"])
    for data in (content[:700], content[:-30], b"", b"y", (tmp_path / "y.npy").read_bytes()):
        (tmp_path / "bad.npz").write_bytes(data)
        with pytest.raises(InputError, match=r"bad\.npz: not a readable measurement file"):
            read_measurements(tmp_path / "bad.npz")

    other = network()
    other.A.Phi.data[0, 0] += 1
    for wrong, ratio in ((other, 10), (network(4), 4)):
        message = rf"measured with Φ \w{{16}} .*expected .*ratio {ratio}"
        with pytest.raises(InputError, match=message):
            reconstruct(wrong, read_measurements(tmp_path / "good.npz"))


def test_only_known_fields_are_unpacked_and_none_of_a_size_it_has_not(tmp_path):
    file = tmp_path / "a.npz"
    write_measurements(file, Measurements(torch.rand(1, 11, 1, 2), 1, 20, 40, "\x1b[2J"))
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}

    def header(shape, kind):
        text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
        return np.lib.format.magic(1, 0) + b"\x76\0" + f"{text:117}\n".encode()

    for change, message in (
        ({"note.npy": header((10**12,), "<f8"), "other": b"no array"}, ""),
        ({"y.npy": header((1, 11, 10**6, 10**6), "<f4")}, "not a readable measurement file"),
        ({"y.npy": header((1, 11, 1, 2), "|O")}, "not a readable measurement file"),
        ({"y.npy": b"no array"}, "y is , expected 1×11×1×2"),
        ({"phi.npy": header((10**5,), "|u1") + bytes(10**5)}, "phi has 100,128 bytes"),
        ({"ratio.npy": header((), "<i8") + bytes(8)}, "ratio is 0, expected"),
    ):
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in (entries | change).items():
                archive.writestr(name, data)
        if not message:
            assert read_measurements(file).phi == r"\x1b[2J"
            continue
        with pytest.raises(InputError, match=rf"a\.npz: .*{message}"):
            read_measurements(file)


def test_programs_measure_reconstruct_and_refuse_in_a_line(tmp_path, run):
    save_checkpoint(tmp_path / "net.pth", network())
    weights = ["--weights", tmp_path / "net.pth", "--device", "cpu"]
    colour = smooth(45, 60, 3)
    write_image(tmp_path / "a.png", colour)
    for extra in ([], ["--color"], ["--noise", 3, "--bits", 6]):
        run(measuring, tmp_path / "a.png", "-o", tmp_path / "a.npz", *weights, *extra)
        run(reconstructing, tmp_path / "a.npz", *weights, "--stages", tmp_path / "stages")
        restored = read_image(tmp_path / "a_reconstructed.png")
        assert restored.shape == ((45, 60, 3) if "--color" in extra else (45, 60))
    names = sorted(path.name for path in (tmp_path / "stages").iterdir())
    assert names == ["0.png", "1.png", "2.png"]
    np.testing.assert_array_equal(read_image(tmp_path / "stages" / "2.png"), restored)

    run(measuring, "--export_phi", tmp_path / "phi.npy", *weights)
    np.testing.assert_array_equal(np.load(tmp_path / "phi.npy"), network().A.Phi.detach())

    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:200])
    other = tmp_path / "other.pth"
    save_checkpoint(other, network(4))
    to_file = [measuring, tmp_path / "a.png", "-o", "b.npz", *weights]
    for arguments, message in (
        ([reconstructing, tmp_path / "cut.npz", *weights], "cut.npz: not a readable measurement"),
        ([reconstructing, "none.npz", *weights], "none.npz: does not exist; expected a meas"),
        ([reconstructing, tmp_path / "a.npz", "--weights", other], "a.npz: measured with Φ"),
        ([measuring, *weights], "expected IMAGE -o FILE, or --export_phi FILE"),
        ([measuring, tmp_path / "a.png", *weights], "expected IMAGE -o FILE"),
        ([*to_file, "--bits", 17], "--bits is 17"),
        ([*to_file, "--noise", "nan"], "--noise is nan"),
        ([*to_file, "--seed", 2**63], f"--seed is {2**63}; expected 0 or more"),
        ([measuring, tmp_path / "cut.npz", *to_file[2:]], "of no known image format"),
        ([*to_file, "-o", tmp_path / "a.png"], "a.png: would not be called what it is; expected a"),
        ([measuring, "--export_phi", "phi", *weights], "expected a name in .npy"),
        ([test, "--cs_ratio", 25, *weights], "--cs_ratio: the weights have theirs"),
        ([test, "--tile", 16, *weights], "tile is 16; expected auto, 0 or at least 32"),
        ([test, "--self_ensemble", *weights], "measure every image eight times"),
        ([test, "--input_dir", tmp_path / "no", *weights], "does not exist"),
    ):
        assert message in run(*arguments)


def rows_of(folder: Path) -> dict[str, float]:
    rows = csv.DictReader((folder / "scores.csv").read_text("utf-8").splitlines())
    return {row["image"]: float(row["psnr"]) for row in rows}


def test_scores_are_of_the_unrounded_result(tmp_path, run):
    model, folder = network(50), tmp_path / "images"
    save_checkpoint(tmp_path / "net.pth", model)
    colour = smooth(45, 60, 3)
    write_image(folder / "colour.png", colour)
    write_image(folder / "grey.png", smooth(33, 64))
    Image.fromarray(smooth(40, 40)).convert("P").save(folder / "palette.tif")
    common = ["--weights", tmp_path / "net.pth", "--input_dir", folder, "--device", "cpu"]

    def scores_of(name, *extra):
        run(test, *common, "--result_dir", tmp_path / name, *extra)
        results = tmp_path / name / "images_50"
        settings = read_settings(results)
        assert settings["cs_ratio"] == 50 and "unfinished" not in settings
        return rows_of(results)

    whole = scores_of("whole", "--tile", 0)
    assert list(whole) == ["colour", "grey", "palette"]
    luma = np.rint(colour @ [0.299, 0.587, 0.114]).astype(np.uint8)
    for name, image in (("colour", luma), ("grey", smooth(33, 64)), ("palette", smooth(40, 40))):
        result = alone(model, image / 255).clip(0, 1)
        expected = compressive_sensing_y(result, image)[0]
        assert whole[name] == pytest.approx(expected, abs=0.02 if name == "colour" else 1e-4)
        written = read_image(tmp_path / "whole" / "images_50" / f"{name}.png")
        assert abs(written - result * 255).max() <= (1.6 if name == "colour" else 0.501)
    assert scores_of("truncated", "--tile", 0, "--truncate") == whole
    written = read_image(tmp_path / "truncated" / "images_50" / "grey.png")
    lost = alone(model, smooth(33, 64) / 255).clip(0, 1) * 255 - written
    assert lost.min() > -0.01 and lost.max() > 0.9

    coloured = scores_of("colour", "--color", "--tile", 0)
    result = np.dstack([alone(model, plane / 255) for plane in np.moveaxis(colour, 2, 0)])
    expected = compressive_sensing_y(result.clip(0, 1), colour)[0]
    assert coloured["colour"] == pytest.approx(expected, abs=1e-4)
    assert coloured["grey"] == whole["grey"]


def test_tiles_of_the_published_grid_are_reconstructed_alone(tmp_path, run):
    model, image = network(50), smooth(70, 100)
    save_checkpoint(tmp_path / "net.pth", model)
    write_image(tmp_path / "images/a.png", image)
    expected = compressive_sensing_y(alone(model, image / 255, 64).clip(0, 1), image)[0]
    common = ["--weights", tmp_path / "net.pth", "--input_dir", tmp_path / "images"]
    common += ["--device", "cpu", "--result_dir", tmp_path / "out"]
    run(test, *common, "--tile", 64)
    assert rows_of(tmp_path / "out/images_50")["a"] == pytest.approx(expected, abs=1e-4)
    run(test, *common)
    settings = read_settings(tmp_path / "out/images_50")
    assert settings["tile"] == 128
    assert abs(rows_of(tmp_path / "out/images_50")["a"] - expected) > 1e-3
