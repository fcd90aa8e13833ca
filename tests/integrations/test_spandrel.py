"""spandrel's own loader takes our files and the authors', and makes our images."""

import pytest
import torch

from dgunet import Restorer, build_model
from dgunet.base.errors import InputError
from dgunet.model.pretrained import find_weights

spandrel = pytest.importorskip("spandrel")

WEIGHTS = ("small_gaussian25", "mixed_rain", "mixed_blur", "DGUNet_25")


@pytest.fixture(scope="module")
def loader():
    from dgunet.integrations.spandrel import install

    install()
    install()  # the second time nothing happens
    return spandrel.ModelLoader()


@pytest.mark.parametrize("name", WEIGHTS)
def test_bundled_weights_restore_as_here(loader, name):
    path = find_weights(name)
    model = loader.load_from_file(path)
    assert (model.architecture.id, model.purpose, model.scale) == ("DGUNet", "Restoration", 1)
    size = (21, 37) if model.input_channels == 3 else (32, 64)  # the first is padded
    image = torch.rand(1, model.input_channels, *size)
    wanted = Restorer.from_checkpoint(path, device="cpu")(image)
    assert (model(image) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("case", ("Deblurring.DGUNet", "Compressive_Sensing.DGUNet_plus"))
def test_published_files_load(loader, synthetic, tmp_path, case):
    torch.save(synthetic.published_checkpoint(case), tmp_path / "published.pth")
    model = loader.load_from_file(tmp_path / "published.pth")
    assert type(model.model).__name__ == case.split(".")[1]
    assert model.model.sizes["stages"] == 7


def test_half_precision_is_within_two_hundredths_of_a_decibel(loader):
    generator = torch.Generator().manual_seed(0)
    target = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8, generator=generator), (96, 96))
    image = target + 25 / 255 * torch.randn(target.shape, generator=generator)
    model = loader.load_from_file(find_weights("small_gaussian25"))
    plain = -10 * (model(image) - target).square().mean().log10()
    restored = model.half()(image.half())
    assert restored.dtype == torch.float16
    assert abs(plain + 10 * (restored.float() - target).square().mean().log10()) < 0.02
    with pytest.raises(spandrel.UnsupportedDtypeError):
        model.bfloat16()


def test_tensors_alone_that_do_not_tell_the_sizes_are_refused(loader):
    state = build_model("Deraining", "DGUNet", {"width": 8}).state_dict()
    with pytest.raises(InputError, match="does not say which network"):
        loader.load_from_state_dict(state)
