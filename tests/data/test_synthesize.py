import numpy as np
import pytest
from pictures import noise
from scipy.ndimage import convolve
from skimage.color import rgb2xyz

from dgunet.base.errors import InputError
from dgunet.data.degradations import (
    PRESETS,
    Noise,
    add_noise,
    blur_in_linear_light,
    degrade,
    linear_to_srgb,
    pair_generator,
    shake_kernel,
    srgb_to_linear,
    streak_kernel,
)
from dgunet.images.files import list_images, read_image, read_rgb, write_image
from dgunet.images.psnr import psnr
from dgunet.tools import synthesize as command
from dgunet.tools.synthesize import BUNDLED_PHOTOS, bundled_photos, synthesize


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for index, shape in enumerate([(50, 70, 3), (64, 64, 3), (40, 90)]):
        write_image(folder / f"photo{index}.png", noise(*shape, seed=index))
    return folder


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shape", [(40, 56, 3), (40, 56, 1), (40, 56), (5, 7, 3)])
def test_degrade_keeps_shape_and_type_and_input(preset, shape):
    for dtype in (np.float32, np.float64):
        image = rng().random(shape).astype(dtype)
        before = image.copy()
        degraded = degrade(image, preset, rng())
        assert (degraded.shape, degraded.dtype) == (shape, dtype) and np.isfinite(degraded).all()
        np.testing.assert_array_equal(image, before)
        np.testing.assert_array_equal(degraded, degrade(image, preset, rng()))
        np.testing.assert_array_equal(degraded, degrade(image, PRESETS[preset], rng()))


@pytest.mark.parametrize(
    ("level", "sigma", "shot"), [(1, 15, 0), (1, 50, 0), (0, 5, 0.02), (0.9, 5, 0.02)]
)
def test_noise_has_its_variance_and_is_white(level, sigma, shot):
    """Around white, too: neither clipping nor rounding would keep it."""
    noisy = add_noise(np.full((300, 300, 3), float(level)), Noise(sigma, shot), rng())
    variance = shot * level + (sigma / 255) ** 2
    assert abs(noisy.mean() - level) < 4 * np.sqrt(variance / noisy.size)
    assert noisy.var() == pytest.approx(variance, rel=0.03)
    assert len(np.unique(noisy)) > 0.99 * noisy.size
    pairs = (noisy[..., 0], noisy[..., 1]), (noisy[:, 1:], noisy[:, :-1])
    assert all(abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02 for a, b in pairs)


@pytest.mark.parametrize("extent", [0.5, 3.0, 11.0, 40.0])
def test_shake_kernel_is_a_centred_path(extent):
    for seed in range(20):
        kernel = shake_kernel(extent, rng(seed))
        assert kernel.shape[0] == kernel.shape[1] and kernel.shape[0] % 2 == 1
        assert kernel.min() >= 0 and kernel.sum() == pytest.approx(1, abs=1e-9)
        offset = np.mgrid[: len(kernel), : len(kernel)] - len(kernel) // 2
        np.testing.assert_allclose((offset * kernel).sum(axis=(1, 2)), 0, atol=1e-9)
        reach = np.hypot(*offset)[kernel > 0].max()
        assert extent / 2 - 1 <= reach <= extent / 2 + np.sqrt(2)


def test_blur_is_convolution_of_light_with_reflected_borders():
    image, kernel = rng(1).random((30, 25, 3)), shake_kernel(14, rng(2))
    light = convolve(srgb_to_linear(image), kernel[..., None], mode="mirror")
    expected = linear_to_srgb(light)
    np.testing.assert_allclose(blur_in_linear_light(image, kernel), expected, atol=1e-9)


def test_srgb_transfer_function_is_that_of_the_standard():
    greys = np.linspace(0, 1, 1001)
    light = rgb2xyz(np.repeat(greys[:, None, None], 3, axis=2))[:, 0, 1]
    np.testing.assert_allclose(srgb_to_linear(greys), light, atol=1e-6)
    assert srgb_to_linear(np.array(0.5)) == pytest.approx(0.2140411405, abs=1e-9)
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(greys)), greys, atol=1e-7)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith("rain")])
def test_rain_only_brightens_and_the_same_in_every_channel(preset):
    y, x = np.mgrid[:96, :128] / 128
    image = np.stack([x, y, (x + y) / 2], axis=2).astype(np.float32)
    for seed in range(3):
        rainy = degrade(image, preset, rng(seed))
        assert (rainy >= image).all()
        assert rainy.max() <= 1
        assert 0.05 < (rainy > image + 0.02).mean() < 0.9
    rain_on_black = degrade(np.zeros_like(image), preset, rng(2))
    assert np.ptp(rain_on_black, axis=2).max() == 0
    np.testing.assert_allclose(rainy, 1 - (1 - image) * (1 - rain_on_black), atol=1e-6)
    white = np.ones_like(image)
    np.testing.assert_array_equal(degrade(white, preset, rng()), white)


def test_streak_kernel_has_its_length_width_and_angle():
    upright = streak_kernel(24, 3, 0)
    middle = len(upright) // 2
    assert upright.max() == upright[middle, middle] == 1
    assert upright[middle, middle + 1 : middle + 3].mean() == pytest.approx(0.5, abs=0.25)
    assert (upright[:, middle] > 0).sum() == 23  # the fade reaches 0 at both ends, 12 pixels away
    steep = streak_kernel(24, 3, 30)
    y, x = np.mgrid[: len(steep), : len(steep)] - len(steep) // 2
    spread, axes = np.linalg.eigh(np.cov(np.stack([x.ravel(), y.ravel()]), aweights=steep.ravel()))
    assert spread[1] > 5 * spread[0]
    across, down = axes[:, 1]
    assert np.degrees(np.arctan(across / down)) == pytest.approx(30, abs=0.5)


def test_pixels_that_are_not_float_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        degrade(np.zeros((8, 8, 3), np.uint8), "gaussian25", rng())


def test_bundled_photos_are_split_into_train_and_test():
    assert bundled_photos("train") + bundled_photos("test") == bundled_photos()
    assert {"chelsea.png", "coffee.png"} < set(BUNDLED_PHOTOS["test"])
    assert not set(BUNDLED_PHOTOS["train"]) & set(BUNDLED_PHOTOS["test"])
    assert not [name for name in BUNDLED_PHOTOS["test"] if "motorcycle" in name]
    for photo in bundled_photos():
        assert read_image(photo).shape[2] == 3
    with pytest.raises(InputError, match="expected train, test or all"):
        bundled_photos("validation")


def test_pairs_are_photo_and_degraded_photo(photos, tmp_path):
    psnr_of = synthesize("gaussian25", tmp_path / "set", list_images(photos), seed=3)
    assert list(psnr_of) == ["photo0", "photo1", "photo2"]
    for name, value in psnr_of.items():
        target = read_image(tmp_path / f"set/target/{name}.png")
        np.testing.assert_array_equal(target, read_rgb(photos / f"{name}.png"))
        degraded = read_image(tmp_path / f"set/input/{name}.png")
        generator = pair_generator(3, "gaussian25", name)
        noisy = add_noise(target / np.float32(255), Noise(25), generator)
        assert np.abs(degraded - np.clip(noisy * 255, 0, 255)).max() <= 0.5
        assert value == pytest.approx(psnr(degraded, target, data_range=255))


@pytest.mark.parametrize("preset", ["rain_medium", "blur_mild", "poisson_gaussian"])
def test_the_same_seed_gives_the_same_bytes(photos, tmp_path, preset):
    files = list_images(photos)
    synthesize(preset, tmp_path / "one", files, seed=1, jobs=1)
    synthesize(preset, tmp_path / "same", files, seed=1, jobs=3)
    synthesize(preset, tmp_path / "fewer", files[2:0:-1], seed=1, jobs=1)
    synthesize(preset, tmp_path / "other", files, seed=2, jobs=1)
    names = ("one", "same", "fewer", "other")
    one, same, fewer, other = (contents(tmp_path / name) for name in names)
    assert (len(one), len(fewer)) == (6, 4)
    assert same == one and fewer.items() <= one.items()
    assert all((other[path] == data) == (path.parts[0] == "target") for path, data in one.items())


def test_patches_tile_the_middle_and_max_side_keeps_it(photos, tmp_path, capsys):
    synthesize("gaussian25", tmp_path / "middle", list_images(photos), max_side=50)
    target = read_image(tmp_path / "middle/target/photo0.png")
    np.testing.assert_array_equal(target, read_rgb(photos / "photo0.png")[:, 10:60])

    psnr_of = synthesize("gaussian25", tmp_path / "set", list_images(photos), patch_size=45)
    assert list(psnr_of) == ["photo0_00_00", "photo1_00_00"]
    assert "left out, smaller than a patch: photo2.png" in capsys.readouterr().out
    target = read_image(tmp_path / "set/target/photo0_00_00.png")
    np.testing.assert_array_equal(target, read_rgb(photos / "photo0.png")[2:47, 12:57])

    psnr_of = synthesize("gaussian25", tmp_path / "small", list_images(photos)[:1], patch_size=20)
    assert len(psnr_of) == 2 * 3
    targets = list_images(tmp_path / "small/target")
    rows = [np.hstack([read_image(path) for path in targets[at : at + 3]]) for at in (0, 3)]
    np.testing.assert_array_equal(np.vstack(rows), read_rgb(photos / "photo0.png")[5:45, 5:65])


def test_what_the_user_had_is_not_overwritten(photos, tmp_path):
    files = list_images(photos)
    synthesize("gaussian25", tmp_path / "set", files)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"holds 6 images already.*--overwrite"):
        synthesize("gaussian50", tmp_path / "set", files)
    with pytest.raises(InputError, match=r"2 images that this run would not replace.*photo2\.png"):
        synthesize("gaussian50", tmp_path / "set", files[:2], overwrite=True)
    with pytest.raises(InputError, match="lies where pairs would be written"):
        own_targets = list_images(tmp_path / "set/target")
        synthesize("gaussian50", tmp_path / "set", own_targets, overwrite=True)
    assert contents(tmp_path) == before
    synthesize("gaussian50", tmp_path / "set", files, overwrite=True)
    assert contents(tmp_path) != before


def test_options_that_make_no_pairs_are_refused(photos, tmp_path):
    files = list_images(photos)
    broken = tmp_path / "broken.png"
    broken.write_bytes(files[1].read_bytes()[:1000])
    write_image(tmp_path / "more/photo0.jpg", np.zeros((8, 8, 3), np.uint8))
    for arguments, message in [
        ({"photos": [*files, tmp_path / "more/photo0.jpg"]}, "1 names belong to two .*: photo0"),
        ({"photos": files, "patch_size": 500}, "none of 3 photographs gives a pair of 500×500"),
        ({"photos": files, "patch_size": 0}, "patch_size is 0"),
        ({"photos": files, "jobs": 0}, "jobs is 0"),
        ({"photos": [*files, broken]}, f"1 of 4 are unusable: {broken}: cannot be read"),
    ]:
        with pytest.raises(InputError, match=message):
            synthesize("gaussian25", tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()


def test_the_command_degrades_the_photographs_named(photos, tmp_path, run):
    arguments = ["rain_light", "--photos", photos, "--output", tmp_path / "set"]
    out = run(command, *arguments, "--images", "photo0, photo2.png")
    assert f"{tmp_path}/set: 2 pairs, mean PSNR of the inputs " in out
    found = [path.name for path in list_images(tmp_path / "set/input")]
    assert found == ["photo0.png", "photo2.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["snow"], "unknown preset 'snow'; expected one of rain_light"),
        (["rain_light", "--photos", "PHOTOS", "--images", "cat"], "no photograph 'cat'"),
        (["rain_light", "--photos", "missing_folder"], "missing_folder: does not exist"),
        (["rain_light", "--photos", "PHOTOS", "--images", ","], "no photograph ''"),
    ],
)
def test_mistakes_are_told_in_one_line(photos, tmp_path, run, arguments, message):
    arguments = [photos if word == "PHOTOS" else word for word in arguments]
    assert message in run(command, *arguments, "--output", tmp_path / "set")


# Ranges around the module's table, wide enough for three photographs' middles.
@pytest.mark.parametrize(
    ("preset", "low", "high"),
    [
        ("rain_light", 25, 31),
        ("rain_heavy", 20.5, 26.5),
        ("blur_mild", 24, 33),
        ("blur_strong", 22, 30),
        ("gaussian25", 20.17, 21.6),  # 20·log10(255/25) = 20.17; clipping only lessens the noise
        ("poisson_gaussian", 22, 27),
    ],
)
def test_psnr_of_the_presets_on_bundled_photos(tmp_path, preset, low, high):
    psnr_of = synthesize(preset, tmp_path, bundled_photos("test"), max_side=192, jobs=2)
    assert low < np.mean(list(psnr_of.values())) < high
