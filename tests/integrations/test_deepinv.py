"""deepinv's own classes around our networks."""

import pytest
import torch
from networks import small

from dgunet import Restorer, load_model
from dgunet.model.pretrained import find_weights

deepinv = pytest.importorskip("deepinv")


def test_operator_passes_deepinvs_test_of_adjointness():
    from dgunet.integrations.deepinv import CompressiveSensing

    physics = CompressiveSensing(small("Compressive_Sensing"), (1, 64, 96))
    assert physics.adjointness_test(torch.rand(1, 1, 64, 96), num_samples=4) < 1e-5
    assert physics.A_dagger(physics(torch.rand(1, 1, 64, 96))).shape == (1, 1, 64, 96)


def test_reconstructor_reconstructs_what_the_operator_measures():
    from dgunet.integrations.deepinv import CompressiveSensing, Reconstructor

    sensing = small("Compressive_Sensing")
    physics = CompressiveSensing(sensing, (1, 64, 32))
    image = torch.rand(2, 1, 64, 32)
    with torch.no_grad():
        assert torch.equal(Reconstructor(sensing)(physics(image), physics), sensing(image)[0])


def test_denoiser_and_reconstructor_restore_images_of_any_size():
    from dgunet.integrations.deepinv import Denoiser, Reconstructor

    network, _ = load_model(find_weights("small_gaussian25"))
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(25 / 255))
    image = torch.linspace(0.2, 0.8, 41).expand(1, 3, 35, 41)
    y = physics(image)
    wanted = Restorer(network, device="cpu")(y.clamp(0, 1))
    denoised = Denoiser(network)(y.clamp(0, 1), 25 / 255)
    assert (denoised.clamp(0, 1) - wanted).abs().max() < 1e-5
    psnr = deepinv.metric.PSNR()
    assert psnr(Reconstructor(network)(y, physics), image) > psnr(y, image) + 5


def test_denoiser_is_a_prior_of_deepinvs_algorithms():
    from dgunet.integrations.deepinv import Denoiser

    physics = deepinv.physics.Inpainting((3, 16, 24), mask=0.5)
    model = deepinv.optim.optim_builder(
        "PGD",
        prior=deepinv.optim.PnP(Denoiser(small("Denoising"))),
        data_fidelity=deepinv.optim.L2(),
        max_iter=2,
        params_algo={"stepsize": 1.0, "g_param": 0.1},
    )
    image = torch.rand(1, 3, 16, 24)
    assert model(physics(image), physics).shape == image.shape
