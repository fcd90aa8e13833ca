"""The command that publishes the weights of a training run."""

import json

import pytest
import torch
from networks import small

from dgunet.base.errors import InputError
from dgunet.base.files import sha256
from dgunet.model.checkpoint import load_model, save_checkpoint
from dgunet.tools import bundle as bundling
from dgunet.tools.bundle import bundle

ARGUMENTS = ["--name", "tiny", "--data", "photographs", "--licence", "free"]


def validated(tmp_path, psnr: float):
    """Return the folder of a run whose best weights have so many dB."""
    folder, network = tmp_path / f"run{psnr:g}", small("Denoising")
    network.last.image.weight.data.fill_(psnr)
    made = {"config": "Denoising/small.yml", "commit": "abc", "hardware": "cpu", "cores": 2}
    extra = {"psnr": psnr, "samples": 12345, "seconds": 900.0, "made": made}
    save_checkpoint(folder / "model_best.pth", network, epoch=3, **extra)
    (folder / "config.yml").write_text(
        "SEED: 7\nDATA: {DEGRADATION: gaussian25}\n"
        "TRAINING: {TRAIN_PS: 64, TRAIN_DIR: /home/me/photos, VAL_DIR: '', SAVE_DIR: runs}\n"
    )
    return folder


@pytest.fixture
def trained(tmp_path):
    return validated(tmp_path, 30.0)


def test_the_record_says_how_the_weights_were_made(trained, tmp_path, run):
    run(bundling, trained, *ARGUMENTS, "--output", tmp_path / "out")
    weights = tmp_path / "out" / "tiny.safetensors"
    record = json.loads(weights.with_suffix(".json").read_text())
    assert not weights.with_suffix(".csv").exists()  # the run has no log
    saved, best = (load_model(f)[0].state_dict() for f in (weights, trained / "model_best.pth"))
    assert all(torch.equal(saved[name], best[name]) for name in best)
    assert record["sha256"] == sha256(weights) and record["sizes"]["stages"] == 2
    assert (record["task"], record["model"], record["held_out_psnr"]) == ("Denoising", "DGUNet", 30)
    assert record["trained_for"] == "Gaussian noise, σ = 25 of 255"
    assert record["training"] == {
        "config": "Denoising/small.yml",
        "commit": "abc",
        "hardware": "cpu",
        "degradation": "gaussian25",
        "seed": 7,
        "patches": 12345,
        "patch_size": 64,
        "minutes": 15.0,
        "data": "photographs",
        "licence": "free",
        "core_hours": 0.5,
    }
    assert record["config"]["TRAINING"]["TRAIN_DIR"] == "photos"


def test_the_learning_curve_is_that_of_the_weights(trained, tmp_path, run):
    (trained / "log.csv").write_text("samples,minutes,psnr,learning_rate\n0,0.1,20,0\n")
    run(bundling, trained, *ARGUMENTS, "--output", tmp_path)
    assert (tmp_path / "tiny.csv").read_text() == (trained / "log.csv").read_text()
    bundle(validated(tmp_path, 31.0), "tiny", tmp_path)  # a run without
    assert not (tmp_path / "tiny.csv").exists()


def test_only_better_weights_replace_those_that_are_there(trained, tmp_path):
    out = tmp_path / "out"
    kept = sha256(bundle(trained, "tiny", out))
    with pytest.raises(InputError, match=r"30\.00 dB .* these have 29\.00 dB; nothing wri"):
        bundle(validated(tmp_path, 29.0), "tiny", out)
    assert sha256(out / "tiny.safetensors") == kept
    assert sha256(bundle(validated(tmp_path, 31.0), "tiny", out)) != kept
    bundle(trained, "tiny", out, overwrite=True)
    assert sha256(out / "tiny.safetensors") == kept


def test_a_run_that_was_never_validated_is_refused(trained, tmp_path):
    (trained / "model_best.pth").unlink()
    with pytest.raises(InputError, match=r"has no model_best\.pth; expected a validated run"):
        bundle(trained, "tiny", tmp_path / "out")
