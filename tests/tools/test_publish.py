"""Folders for model hubs, and loading from them."""

import json
import sys
from unittest.mock import Mock

import pytest
import torch

from dgunet import Restorer, build_model
from dgunet.base.errors import InputError
from dgunet.model.checkpoint import save_checkpoint
from dgunet.model.pretrained import find_weights
from dgunet.tools.publish import publish


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "denoiser"
    publish(find_weights("small_gaussian25"), path)
    return path


def test_folder_restores_as_the_weights_do(folder):
    image = torch.rand(3, 24, 33)
    wanted = Restorer.from_checkpoint(find_weights("small_gaussian25"), device="cpu")(image)
    restorer = Restorer.from_pretrained(folder, device="cpu")
    assert torch.equal(restorer(image), wanted)
    assert json.loads((folder / "config.json").read_text())["task"] == restorer.network.task


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the library of the hub."""
    library = Mock()
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    return library.snapshot_download


def test_name_on_the_hub_is_downloaded_at_its_revision(folder, hub):
    hub.return_value = str(folder)
    Restorer.from_pretrained("someone/denoiser", revision="v1", device="cpu")
    files = ["config.json", "model.safetensors"]
    hub.assert_called_once_with("someone/denoiser", revision="v1", allow_patterns=files)


def test_what_the_hub_does_not_have_is_an_error_of_one_line(hub, monkeypatch):
    hub.side_effect = OSError("404 Client Error.\n\nRepository Not Found")
    with pytest.raises(InputError, match=r"^someone/nothing: .*404 Client Error") as error:
        Restorer.from_pretrained("someone/nothing")
    assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="pip install huggingface_hub"):
        Restorer.from_pretrained("someone/nothing")


@pytest.mark.parametrize("name", ("small_gaussian25", "DGUNet_10"))
def test_card_says_what_the_weights_are(name, tmp_path):
    publish(find_weights(name), tmp_path)
    card = (tmp_path / "README.md").read_text()
    record = json.loads(find_weights(name).with_suffix(".json").read_text())
    assert card.startswith("---\nlicense: mit\n")
    for section in ("Trained for", "Training data", "Scores", "Limits", "Licence"):
        assert f"\n## {section}\n\n" in card
    assert record["training"]["data"] in card
    assert "Not known" not in card
    assert all(f"| {row['psnr']:.2f} / " in card for row in record["scores"].values())


def test_card_of_weights_without_a_record_says_so(tmp_path):
    save_checkpoint(tmp_path / "mine.pth", build_model("Deraining", "DGUNet", {"width": 8}))
    publish(tmp_path / "mine.pth", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: other\n")
    assert card.count("Not known") == 4
