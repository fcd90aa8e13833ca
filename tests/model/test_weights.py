"""The weights that ship: what lies beside each file, and that it restores."""

import hashlib
import importlib
import json
import shlex
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from dgunet.data.degradations import degrade
from dgunet.images.files import read_rgb, to_tensor, to_uint8
from dgunet.images.psnr import psnr
from dgunet.inference.restorer import Restorer
from dgunet.model.checkpoint import load_model
from dgunet.model.registry import TASKS
from dgunet.tools.synthesize import bundled_photos
from dgunet.training import trainer

ROOT = Path(__file__).parents[2]
FILES = sorted(
    file
    for task in TASKS
    for file in ROOT.glob(f"{task}/pretrained_models/*.*")
    if not file.name.startswith("published")  # downloaded
)
WEIGHTS = [file for file in FILES if file.suffix == ".safetensors"]
MEGABYTES = {"Compressive_Sensing": 11, "Denoising": 8}
LEAST_GAIN = {"Deblurring": 0.5, "Deraining": 3, "Denoising": 6}  # dB, on the picture below


def name(file: Path) -> str:
    return f"{file.parts[-3]}/{file.name}"


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """A cat's face, 128×128×3."""
    photo = next(path for path in bundled_photos() if path.stem == "chelsea")
    return read_rgb(photo)[60:188, 130:258]


def test_nothing_lies_alone():
    """No weights without their JSON file, and beside them at most their learning curve."""
    records = {file for file in FILES if file.suffix == ".json"}
    assert records == {file.with_suffix(".json") for file in WEIGHTS}
    assert set(FILES) - records - set(WEIGHTS) <= {file.with_suffix(".csv") for file in WEIGHTS}


@pytest.mark.parametrize("file", WEIGHTS, ids=name)
def test_record(file):
    """The JSON file is of this very file, and says how it was made and what it scores."""
    record = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    data = file.read_bytes()
    assert len(data) <= 1e6 * MEGABYTES.get(file.parts[-3], 4)
    assert record["file"] == file.name
    assert record["sha256"] == hashlib.sha256(data).hexdigest()
    network, _ = load_model(file)
    assert network.config["task"] == record["task"] == file.parts[-3]
    assert network.config["model"] == record["model"]
    assert record["sizes"] == network.sizes
    made = record["training"]
    needed = {
        "config",
        "command",
        "data",
        "seed",
        "commit",
        "patches",
        "patch_size",
        "minutes",
        "hardware",
    }
    assert made.keys() >= needed
    assert (ROOT / made["config"]).is_file()
    assert record["scores"]
    if record["task"] == "Compressive_Sensing":
        assert record["held_out_psnr"] > 20
        assert record["cs_ratio"] == network.sizes["cs_ratio"]
        assert {"MODEL", "OPTIM", "TRAINING"} <= record["config"].keys()
    else:
        assert made["degradation"]


@pytest.mark.parametrize("file", WEIGHTS, ids=name)
def test_command(file, run, tmp_path, monkeypatch):
    """Each part of the command can be run: its options are valid, and what it reads is BSD400,
    comes out of git or is made by a part before it, since bundled files change."""
    monkeypatch.chdir(tmp_path)
    for recipe in ROOT.glob("*/*.yml"):
        Path(recipe.parent.name).mkdir(exist_ok=True)
        shutil.copy(recipe, recipe.parent.name)
    for photographs in ("BSD400", "BSD400_train", "BSD400_val"):
        Path(photographs).mkdir()

    def rehearse(task, config, recipe):
        made = Path(config.TRAINING.SAVE_DIR, task.name, "models", config.MODEL.SESSION)
        made.mkdir(parents=True)
        (made / "model_best.pth").touch()
        return mock.MagicMock()

    monkeypatch.setattr(trainer, "Trainer", rehearse)
    made = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))["training"]
    for part in made["command"].split(" && "):
        words = shlex.split(part.removeprefix("OMP_NUM_THREADS=1 "))
        if words[0] == "git":
            Path(words[-1]).touch()
        elif words[1] == "-m":
            assert Path(words[words.index("--photos") + 1]).is_dir()
            Path(words[words.index("--output") + 1]).mkdir(parents=True)
        else:
            assert words[words.index("--config") + 1] == made["config"]
            assert not run(importlib.import_module(f"dgunet.{file.parts[-3]}.train"), *words[2:])


@pytest.mark.parametrize("file", WEIGHTS, ids=name)
def test_restores(file, picture):
    """A picture comes out better than it went in; of measurements, better than the image of least
    norm that has them."""
    network, _ = load_model(file)
    if file.parts[-3] == "Compressive_Sensing":
        image = to_tensor(picture[:64, :64, 1])[None]
        blocks = torch.nn.functional.pixel_unshuffle(image, 32)[0].flatten(1)
        Phi = network.A.Phi.detach()
        linear = torch.nn.functional.pixel_shuffle(
            (torch.linalg.pinv(Phi) @ Phi @ blocks).unflatten(1, (2, 2))[None], 32
        )
        restored = Restorer(network, device="cpu")(image)
        assert psnr(restored, image) > psnr(linear.clamp(0, 1), image)
        return
    preset = json.loads(file.with_suffix(".json").read_text())["training"]["degradation"]
    preset = "gaussian25" if preset.startswith("gaussian") else preset.partition("+")[0]
    clean = picture / np.float32(255)
    degraded = degrade(clean, preset, np.random.default_rng(0)).clip(0, 1)
    restored = to_uint8(Restorer(network, device="cpu")(to_tensor(degraded)))
    gain = psnr(restored, picture, 255) - psnr(degraded, clean)
    assert gain > LEAST_GAIN[file.parts[-3]]
