"""Runs of the published code go on here, and ours there: weights, epoch and optimizer."""

import json
from pathlib import Path

import pytest
import torch
from training_runs import SIZES, trainer_for

from dgunet.base.errors import InputError
from dgunet.model.checkpoint import load_model
from dgunet.model.published_format import published_names, published_state_dict
from dgunet.model.registry import MODELS, build_model
from dgunet.tools.convert import main as convert

MANIFESTS = Path(__file__).parents[1] / "fixtures" / "manifests"


def published_adam(network):
    """Adam as the published training makes it: of the parameters in the order of the manifest. One
    that is not used here has no gradient."""
    manifest = json.loads((MANIFESTS / f"Denoising.{type(network).__name__}.json").read_text())
    later = {name for group in manifest["tied"] for name in group[1:]}
    ours = {theirs: name for name, theirs in published_names(network).items()}
    entries = network.state_dict(keep_vars=True)
    names = [entry["name"] for entry in manifest["entries"] if entry["name"] not in later]
    unused = torch.nn.Parameter(torch.zeros(3))
    used = (entries[ours[name]] if name in ours else unused for name in names)
    return torch.optim.Adam(list(used), lr=1e-4)


def take_step(adam, network, seed):
    generator = torch.Generator().manual_seed(seed)
    for group in adam.param_groups:
        group["lr"] = 1e-4
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    adam.step()
    adam.zero_grad()


def published_run(model, path):
    """Take two steps as the published code does; write what it writes, as PyTorch 1.1 did: steps
    are whole numbers, and parameters are called by their addresses."""
    torch.manual_seed(0)
    sizes = {**SIZES, "stages": 7}
    if model == "DGUNet_plus":
        del sizes["last_extra"]
    network = build_model("Denoising", model, sizes)
    adam = published_adam(network)
    for seed in (1, 2):
        take_step(adam, network, seed)
    optimizer = adam.state_dict()
    [group] = optimizer["param_groups"]
    state = {
        1000 + 8 * number: {**values, "step": int(values["step"])}
        for number, values in optimizer["state"].items()
    }
    group |= {"params": [1000 + 8 * number for number in group["params"]]}
    optimizer = {"state": state, "param_groups": [group]}
    content = {"epoch": 3, "state_dict": published_state_dict(network), "optimizer": optimizer}
    path.parent.mkdir(parents=True)
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return network, adam


def resumed(data, folder, model, **keys):
    keys = {"MODEL__NAME": model, "MODEL__STAGES": 7, "TRAINING__RESUME": True, **keys}
    return trainer_for(data, folder, **{"OPTIM__NUM_EPOCHS": 5, **keys})


@pytest.mark.parametrize("model", MODELS)
def test_a_published_run_goes_on_here_and_ours_there(model, data, tmp_path, capsys):
    file = tmp_path / "Denoising" / "models" / "DGUNet" / "model_latest.pth"
    network, adam = published_run(model, file)
    trainer = resumed(data, tmp_path, model)
    assert (trainer.epoch, trainer.batch) == (4, 0)
    assert f"resumed from {file} at epoch 4" in capsys.readouterr().out
    for optimizer, of in ((adam, network), (trainer.optimizer, trainer.model)):
        take_step(optimizer, of, 3)
    for ours, theirs in zip(trainer.model.parameters(), network.parameters(), strict=True):
        assert torch.equal(ours, theirs)

    trainer.begin_epoch(5)
    trainer.save_latest()
    convert([str(trainer.latest), "--published", "-o", str(tmp_path / "back.pth")])
    # As the published code resumes: load_checkpoint, load_start_epoch, load_optim.
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back["epoch"] == 4 and set(back) == {"epoch", "state_dict", "optimizer"}
    assert all(name.startswith("module.") for name in back["state_dict"])
    assert all(type(v["step"]) is int for v in back["optimizer"]["state"].values())
    restored = load_model(tmp_path / "back.pth", "Denoising")[0]
    again = published_adam(restored)
    again.load_state_dict(back["optimizer"])
    assert back["optimizer"]["param_groups"][0]["initial_lr"] == 1e-4
    for optimizer, of in ((adam, network), (again, restored)):
        take_step(optimizer, of, 4)
    for ours, theirs in zip(restored.parameters(), network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_published_run_that_does_not_fit_is_refused(data, tmp_path):
    file = tmp_path / "Denoising" / "models" / "DGUNet" / "model_latest.pth"
    published_run("DGUNet", file)
    with pytest.raises(InputError, match="the epoch of its training state does not fit"):
        resumed(data, tmp_path, "DGUNet", OPTIM__NUM_EPOCHS=2)
    with pytest.raises(InputError, match="holds no moving average"):
        resumed(data, tmp_path, "DGUNet", OPTIM__EMA=0.9)
    content = torch.load(file, weights_only=True)
    [group], state = content["optimizer"]["param_groups"], content["optimizer"]["state"]
    for broken in (  # a parameter too few, moments of another shape, no moments at all
        {"param_groups": [{"params": group["params"][1:]}]},
        {"state": {key: {**v, "exp_avg": torch.zeros(7)} for key, v in state.items()}},
        {"state": 3},
        {"state": {key: {} for key in state}},
    ):
        torch.save({**content, "optimizer": {**content["optimizer"], **broken}}, file)
        with pytest.raises(InputError, match="the optimizer of its training state"):
            resumed(data, tmp_path, "DGUNet")
