"""Compressive sensing: crops, Φ, training, measurement files, scores."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import smooth
from sensing import SMALL, alone, network

from dgunet.base.errors import InputError
from dgunet.Compressive_Sensing import evaluate, test, train
from dgunet.Compressive_Sensing.data import (
    Photographs,
    draws,
    principal_components,
    read_luma,
    training_data,
    validation_data,
)
from dgunet.data.sampler import EpochBatchSampler, SampleKey
from dgunet.images.files import read_image, write_image
from dgunet.images.psnr import psnr
from dgunet.model.checkpoint import load_model, read_checkpoint, save_checkpoint
from dgunet.model.registry import task_folder
from dgunet.scoring.results_folder import read_settings
from dgunet.training.configuration import load_config
from dgunet.training.trainer import Trainer

FOLDER = task_folder("Compressive_Sensing")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Eight pictures of different sizes and formats, some of colour, one smaller than a block."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(5):
        write_image(folder / f"grey{number}.png", smooth(70 + 9 * number, 100, seed=number))
    write_image(folder / "more" / "tiny.tif", smooth(20, 40))
    for number in range(2):
        write_image(folder / f"colour{number}.bmp", smooth(64, 81, 3, seed=number))
    return folder


def opts_for(folder: Path, save_dir: Path, **keys) -> list[str]:
    """Return the words behind --opts; of a key's name, `__` stands for its point."""
    keys = {name.replace("__", "."): value for name, value in keys.items()}
    keys = {
        "GPU": [],
        "VERBOSE": False,
        "TRAINING.TRAIN_DIR": folder,
        "TRAINING.VAL_DIR": folder,
        "TRAINING.SAVE_DIR": save_dir,
        "DATA.REPEATS": 2,
        "OPTIM.BATCH_SIZE": 5,
        **{f"MODEL.{name.upper()}": size for name, size in SMALL.items()},
        **keys,
    }
    return [str(word) for pair in keys.items() for word in pair]


def config_for(folder: Path, save_dir: Path, file: str = "training.yml", **keys):
    return load_config(FOLDER / file, opts_for(folder, save_dir, **keys), train.TASK.recipe)


def trainer_for(folder: Path, save_dir: Path, file: str = "training.yml", **keys) -> Trainer:
    return Trainer(train.TASK, config_for(folder, save_dir, file, **keys))


# Photographs and crops


def test_crops_are_cut_flipped_and_transposed():
    images = [smooth(50, 70, seed=1), smooth(64, 40, seed=2)]
    photographs = Photographs(images, ["a", "b"], 32)
    rng = np.random.default_rng(0)
    indices, places = rng.integers(2, size=64), rng.random((64, 2))
    moves = np.arange(64) % 8
    crops = photographs.crops(indices, places, moves, 32)
    assert crops.shape == (64, 1, 32, 32)
    for crop, index, place, move in zip(crops, indices, places, moves, strict=True):
        image = images[index]
        top, left = (place * (np.array(image.shape) - 31)).astype(int)
        expected = image[top : top + 32, left : left + 32]
        expected = expected[::-1] if move & 1 else expected
        expected = expected[:, ::-1] if move & 2 else expected
        expected = expected.T if move & 4 else expected
        np.testing.assert_array_equal(crop[0].numpy(), expected.astype(np.float32) / 255)
    corner = photographs.crops(np.array([0]), np.full((1, 2), 1 - 1e-9), moves[:1], 32)[0, 0]
    np.testing.assert_array_equal(corner, images[0][-32:, -32:].astype(np.float32) / 255)


def test_samples_depend_on_seed_epoch_and_position_alone():
    photographs = Photographs([smooth(50, 70, seed=n) for n in range(5)], list("abcde"), 32, seed=3)
    device = torch.device("cpu")

    def batches(photographs=photographs, epoch=1, first=0, **options):
        sampler = EpochBatchSampler(5, seed=3, repeats=3, **options)
        sampler.set_position(epoch, first)
        return [b["target"] for b in photographs.loader(sampler, device)]

    whole = batches(batch_size=4)
    assert [len(batch) for batch in whole] == [4, 4, 4, 3]
    assert torch.equal(torch.cat(whole), torch.cat(batches(batch_size=15)))
    assert torch.equal(torch.cat(whole[2:]), torch.cat(batches(batch_size=4, first=2)))
    shares = [batches(batch_size=4, rank=rank, world_size=2) for rank in range(2)]
    joint = [torch.cat(parts) for parts in zip(*shares, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(whole, joint, strict=True))
    assert not torch.equal(torch.cat(whole), torch.cat(batches(batch_size=4, epoch=2)))
    filler = photographs.batch([SampleKey(1, -1, 0)], 15)
    assert filler["weight"].tolist() == [0]


def test_every_move_and_place_comes_up(photos, tmp_path):
    places, moves = draws(seed=0, epoch=1, samples=4000)
    assert np.bincount(moves, minlength=8).min() > 400
    tops, lefts = np.floor(places * [40 - 31, 36 - 31]).astype(int).T
    assert np.bincount(tops).min() > 350 and len(np.bincount(tops)) == 9
    assert np.bincount(lefts).min() > 700 and len(np.bincount(lefts)) == 5
    config = config_for(photos, tmp_path, DATA__HORIZONTAL_FLIP=False)  # as the published code does
    published, ours = training_data(config), training_data(config_for(photos, tmp_path))
    keys = [SampleKey(1, position, 0) for position in range(40)]
    crops, flipped = (data.batch(keys, 40)["target"] for data in (published, ours))
    _, moves = draws(config.SEED, 1, 40)
    for crop, other, move in zip(crops, flipped, moves, strict=True):
        mirrored = other.flip(1 if move & 4 else 2) if move & 2 else other
        assert torch.equal(crop, mirrored)


def test_training_data_takes_any_images_and_reports_small_ones(photos, tmp_path):
    data = training_data(config_for(photos, tmp_path))
    assert len(data) == 8
    assert data.notes == [
        "1 of 8 images are smaller than the patch of 32 pixels and reflect-padded: tiny.tif"
    ]
    tiny = data.names.index("tiny.tif")
    padded = data.crops(np.array([tiny]), np.zeros((1, 2)), np.zeros(1, int), 32)[0, 0]
    expected = np.pad(smooth(20, 40), ((0, 12), (0, 0)), mode="reflect")[:, :32]
    np.testing.assert_array_equal((padded * 255).round(), expected)

    write_image(tmp_path / "broken" / "a.png", smooth(40, 40))
    (tmp_path / "broken" / "b.png").write_bytes(b"no image")
    config = config_for(tmp_path / "broken", tmp_path)
    with pytest.raises(InputError, match=r"b\.png"):
        training_data(config)
    config.TRAINING.SKIP_CORRUPT = True
    data = training_data(config)
    assert len(data) == 1 and "b.png" in data.notes[0]


def test_luma_of_training_is_bt601_in_studio_range(tmp_path):
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [10, 200, 99]]])
    write_image(tmp_path / "a.png", colours.astype(np.uint8))
    expected = 16 + colours[0] / 255 @ [65.481, 128.553, 24.966]
    luma = read_luma(tmp_path / "a.png")
    np.testing.assert_allclose(luma[0], expected, rtol=1e-6)  # not rounded
    photographs = Photographs([luma, smooth(1, 5)], ["a", "b"], 1)
    crops = photographs.crops(np.arange(2), np.zeros((2, 2)), np.zeros(2, int), 1)
    assert crops.flatten().tolist() == pytest.approx([16 / 255, smooth(1, 5)[0, 0] / 255])
    write_image(tmp_path / "b.png", smooth(9, 9))
    np.testing.assert_array_equal(read_luma(tmp_path / "b.png"), smooth(9, 9))


def test_photographs_held_out_are_not_trained_on(photos, tmp_path):
    config = config_for(photos, tmp_path, TRAINING__VAL_DIR="", TRAINING__HOLD_OUT=3)
    names = validation_data(config).names
    assert len(names) == 3 and not set(names) & set(training_data(config).names)


# Φ


def test_principal_components_are_those_that_the_blocks_were_made_of():
    """Blocks that flips and transposes leave as they are: combinations of three cosine patterns."""
    wave = np.cos(np.pi * (np.arange(32) + 0.5) / 32 * np.array([[0], [2], [4]]))
    patterns = np.stack([np.outer(w, w) for w in wave]).reshape(3, -1)
    patterns /= np.linalg.norm(patterns, axis=1, keepdims=True)
    rng = np.random.default_rng(0)
    weights = np.stack([rng.uniform(10, 20, 200), rng.normal(0, 2, 200), rng.normal(0, 0.7, 200)])
    blocks = (weights.T @ patterns * 255).round().clip(0, 255).astype(np.uint8)
    photographs = Photographs(list(blocks.reshape(-1, 32, 32)), ["block"] * 200, 32)
    phi = principal_components(photographs, 11, blocks=3000)
    assert phi.shape == (11, 1024) and phi.dtype == torch.float32
    np.testing.assert_allclose(phi @ phi.T, np.eye(11), atol=1e-5)
    np.testing.assert_allclose(abs(phi[:3].numpy() @ patterns.T), np.eye(3), atol=0.02)
    assert torch.equal(phi, principal_components(photographs, 11, blocks=3000))


def test_fast_recipe_starts_at_the_projection_onto_the_components(photos, tmp_path, monkeypatch):
    """With orthonormal rows of Φ every gradient step leaves ΦᵀΦx as it is."""
    components = torch.linalg.qr(torch.randn(1024, 256))[0].T
    monkeypatch.setattr(train, "principal_components", lambda _, count: components[:count])
    keys = {"TRAINING__VAL_DIR": "", "TRAINING__HOLD_OUT": 2}
    trainer = trainer_for(photos, tmp_path, "fast.yml", **keys)
    model = trainer.model.eval()
    phi = model.A.Phi.detach()
    assert torch.equal(phi, components)
    blocks = torch.from_numpy(smooth(64, 96)).float().div(255).reshape(2, 32, 3, 32)
    blocks = blocks.transpose(1, 2).reshape(6, 1024)
    expected = (blocks @ phi.T @ phi).reshape(2, 3, 32, 32).transpose(1, 2).reshape(64, 96)
    with torch.no_grad():
        stages = model(torch.from_numpy(smooth(64, 96))[None, None] / 255)
    for stage in stages:
        torch.testing.assert_close(stage[0, 0], expected, atol=1e-5, rtol=0)


def test_fixed_phi_is_not_trained(photos, tmp_path):
    phi = np.random.default_rng(0).normal(0, 0.05, (103, 1024))
    np.save(tmp_path / "phi.npy", phi)
    keys = {"MODEL__CS_RATIO": 10, "MODEL__PHI": tmp_path / "phi.npy", "OPTIM__NUM_EPOCHS": 1}
    keys |= {"OPTIM__EMA": 0.5, "DATA__REPEATS": 1}
    trainer = trainer_for(photos, tmp_path / "run", **keys)
    before = trainer.model.last.image.weight.detach().clone()
    trainer.run()
    assert not torch.equal(trainer.model.last.image.weight, before)
    for file in ("model_best.pth", "model_latest.pth"):
        saved, _ = load_model(trainer.folder / file)
        np.testing.assert_array_equal(saved.A.Phi.detach(), phi.astype(np.float32))

    np.save(tmp_path / "phi.npy", 2 * phi)
    with pytest.raises(InputError, match=r"holds another A\.Phi than is fixed now"):
        trainer_for(photos, tmp_path / "run", TRAINING__RESUME=True, **keys)
    for name, values, message in (
        ("rows", phi[:50], r"holds float64 of shape \(50, 1024\), expected floats \(103, 1024"),
        ("nan", np.where(phi > 0.2, np.nan, phi), "holds values that are not finite"),
        ("text", np.array("Φ"), "holds <U1 of shape"),
    ):
        np.save(tmp_path / f"{name}.npy", values)
        with pytest.raises(InputError, match=f"{name}.npy: {message}"):
            train.read_phi(tmp_path / f"{name}.npy", phi.shape, 10)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "phi.npy").read_bytes()[:999])
    with pytest.raises(InputError, match=r"cut\.npy: not a readable \.npy file"):
        train.read_phi(tmp_path / "cut.npy", phi.shape, 10)


# Training


def test_configuration_is_checked_and_names_the_run(photos, tmp_path):
    config = config_for(photos, tmp_path, MODEL__CS_RATIO=4, MODEL__NAME="DGUNet_plus")
    assert config.MODEL.SESSION == "DGUNet_plus_4"
    for key, value, message in (
        ("TRAINING__TRAIN_PS", 48, r"--opts: TRAINING\.TRAIN_PS is 48, expected a multiple of 32"),
        ("TRAINING__VAL_PS", 16, "a multiple of 32, at least 0"),
        ("MODEL__CS_RATIO", 0, r"CS_RATIO is 0, expected a percentage, 1 to 100"),
        ("MODEL__PHI_INIT", "dct", "pca, or '' for random values"),
        ("MODEL__PHI", "none.npy", "a file that exists"),
    ):
        with pytest.raises(InputError, match=message):
            config_for(photos, tmp_path, **{key: value})
    with pytest.raises(InputError, match=r"DGUNet_25/model_best\.pth', expected a file that ex"):
        config_for(photos, tmp_path, "training_deblock.yml")


def test_published_recipe(photos, tmp_path):
    """Step 1 and 2 as in the paper's code: rate, its halving, batch, crops of an image; each is
    validated by tiles of the size of its crops."""
    rates = {}
    for file, keys in (
        ("training.yml", {}),
        ("training_deblock.yml", {"MODEL__WEIGHTS": tmp_path / "start.pth"}),
    ):
        save_checkpoint(tmp_path / "start.pth", network(25))
        keys |= {"OPTIM__BATCH_SIZE": 32, "DATA__REPEATS": 200}
        trainer = trainer_for(photos, tmp_path / file, file, **keys)
        assert trainer.sampler.samples == 1600 and trainer.loader.sampler.batch_size == 32
        steps = range(0, trainer.schedule.steps, trainer.sampler.batches)
        rates[file] = [trainer.schedule.rate(step) for step in steps]
        sizes = trainer.config.TRAINING
        assert sizes.TRAIN_PS == sizes.VAL_PS == (32 if file == "training.yml" else 64)
    assert rates["training.yml"] == [1e-4] * 400
    assert rates["training_deblock.yml"] == [1e-4] * 60 + [5e-5] * 40
    batch = next(iter(trainer.loader))
    assert batch["target"].shape == (32, 1, 64, 64)
    loaded = load_model(tmp_path / "start.pth")[0]
    assert torch.equal(loaded.A.Phi, trainer.model.A.Phi)


def test_two_steps_and_test_from_the_command_line(photos, tmp_path, run):
    """The first, resumed after an epoch, ends with the weights of an uninterrupted run."""
    opts = opts_for(photos, tmp_path / "runs", TRAINING__VAL_DIR=photos / "more")
    common = ["--cs_ratio", 10, "--opts", *opts, "OPTIM.NUM_EPOCHS"]
    run(train, *common, 1)
    run(train, *common, 2, "TRAINING.RESUME", True)
    printed = run(train, *common, 2, "MODEL.SESSION", "whole")
    assert "1 of 8 images are smaller than the patch of 32" in printed
    assert "paper: batch 32, 400 epochs of 240,000 samples" in printed
    models = tmp_path / "runs" / "Compressive_Sensing" / "models"
    files = (models / session / "model_latest.pth" for session in ("DGUNet_10", "whole"))
    resumed, whole = (load_model(file)[0].parameters() for file in files)
    assert all(map(torch.equal, resumed, whole))
    files = sorted(path.name for path in (models / "DGUNet_10").glob("*.pth"))
    assert files == ["model_best.pth", "model_latest.pth"]

    best = models / "{NAME}_{CS_RATIO}" / "model_best.pth"
    step2 = ["--config", FOLDER / "training_deblock.yml", *common, 1, "MODEL.WEIGHTS", best]
    assert "paper: batch 32, 100 epochs" in run(train, *step2)

    weights = models / "DGUNet_10_deblock" / "model_best.pth"
    arguments = ["--weights", weights, "--input_dir", photos, "--result_dir", tmp_path / "results"]
    printed = run(test, *arguments, "--tile", 32)
    assert "| grey4 " in printed and "protocol compressive_sensing_y" in printed
    results = tmp_path / "results" / f"{photos.name}_10"
    assert len(list(results.glob("*.png"))) == 7  # of the folder itself
    assert f"{photos.name} | 7 |" in run(evaluate, "--result_dir", results, "--target_dir", photos)


def test_the_published_flags_and_configuration_are_answered(photos, tmp_path, run):
    """Any whole percentage is a ratio; --im_size is crop and tile; --patch_size names a file."""
    leftover = tmp_path / "training.yml"
    leftover.write_text("MODEL: {MODE: Denoising}\nTRAINING: {VAL_AFTER_EVERY: 1}\n")
    flags = ["--cs_ratio", 17, "--im_size", 64, "--patch_size", 32, "--opts"]
    flags += opts_for(photos, tmp_path / "runs", DATA__REPEATS=1, OPTIM__NUM_EPOCHS=1)
    printed = run(train, "--config", leftover, *flags)
    assert "training.yml: seems to be the published training.yml" in printed
    [folder] = (tmp_path / "runs").glob("*/models/*")
    weights = folder / "model_latest.pth"
    keys = read_checkpoint(weights)["training"]["config"]["TRAINING"]
    assert (keys["TRAIN_PS"], keys["VAL_PS"]) == (64, 64)

    shutil.copytree(photos / "more", tmp_path / "data" / "Set11")
    flags = ["--input_dir", tmp_path / "data", "--result_dir", tmp_path / "out"]
    flags += ["--test_name", "Set11", "--im_size", 64, "--patch_size", 64]
    run(test, "--weights", weights, *flags, "--device", "cpu")
    settings = read_settings(tmp_path / "out" / "Set11_17")
    assert (settings["cs_ratio"], settings["tile"]) == (17, 64)
    assert "cuda:99" in run(test, "--weights", weights, *flags, "--gpus", 99)


@pytest.mark.parametrize("tile", [32, 64, 0])
def test_validation_is_the_mean_psnr_of_images_by_tiles(tile, photos, tmp_path):
    keys = {"TRAINING__VAL_PS": tile, "TRAINING__VAL_DIR": photos / "more", "MODEL__CS_RATIO": 10}
    write_image(photos / "more" / "second.png", smooth(70, 33, seed=8))
    trainer = trainer_for(photos, tmp_path, **keys)
    trainer.log.start(trainer)
    trainer.validate()
    images = [read_image(path) / np.float32(255) for path in (photos / "more").iterdir()]
    scores = [psnr(alone(trainer.model, image, tile).clip(0, 1), image) for image in images]
    assert trainer.psnr == pytest.approx(np.mean(scores), abs=1e-4)
    (photos / "more" / "second.png").unlink()
