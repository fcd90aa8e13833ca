"""Data sources and the sampler, against the source images and independent formulas."""

import pickle
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from pictures import noise
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import functional as TF
from yacs.config import CfgNode

from dgunet.base.errors import InputError
from dgunet.data.augmentation import change_saturation, mixup
from dgunet.data.crops import (
    CleanImages,
    PackedPairs,
    PairedImages,
    ValidationImages,
    open_training_data,
    training_set,
    validation_set,
)
from dgunet.data.degradations import degradation
from dgunet.data.loading import Batches
from dgunet.data.sampler import EpochBatchSampler, SampleKey
from dgunet.images.files import write_image
from dgunet.tools.pack import pack

PATCH = 32
LUMA = np.array([0.299, 0.587, 0.114])


def coordinates(height: int, width: int, number: int) -> np.ndarray:
    """An image whose pixel at (row, column) is (row, column, number)."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, number)], -1).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five pairs that say where each pixel comes from; the input's third channel is 100 more."""
    folder = tmp_path_factory.mktemp("pairs")
    for number in range(5):
        image = coordinates(48 + number, 60, number)
        write_image(folder / "target" / f"{number}.png", image)
        write_image(folder / "input" / f"{number}.png", image + np.array([0, 0, 100], np.uint8))
    return folder


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory):
    file = tmp_path_factory.mktemp("packed") / "pairs.h5"
    pack(folder, file)
    return file


def spoiled(folder, copy, name="input/2.png"):
    """A copy of the folder with one image cut in half."""
    shutil.copytree(folder, copy)
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[: len(data) // 2])
    return copy


def pixels(tensor: torch.Tensor) -> np.ndarray:
    return (tensor * 255).round().byte().permute(1, 2, 0).numpy()


def validation(folder, size: int, **options) -> ValidationImages:
    return ValidationImages(open_training_data(folder, size, **options))


def keys(count: int, images: int = 5) -> list[SampleKey]:
    return [SampleKey(1, position, position % images) for position in range(count)]


def test_crops_are_where_their_pixels_say_and_pairs_match(folder):
    data = PairedImages(folder, PATCH, 7, augment=False)
    corners = set()
    for key in keys(60):
        sample = data[key]
        target = pixels(sample["target"])
        top, left = map(int, target[0, 0, :2])
        whole = coordinates(48 + key.index, 60, key.index)
        assert np.array_equal(target, whole[top : top + PATCH, left : left + PATCH])
        degraded = target + np.array([0, 0, 100], np.uint8)
        assert np.array_equal(pixels(sample["degraded"]), degraded)
        assert sample["name"] == str(key.index)
        assert (sample["weight"], sample["skipped"]) == (1, 0)
        corners.add((key.index, top, left))
    assert len(corners) > 50


def test_crops_reach_every_place(folder):
    data = PairedImages(folder, 47, augment=False)
    places = {tuple(pixels(data[SampleKey(1, p, 0)]["target"])[0, 0, :2]) for p in range(300)}
    assert places == {(row, column) for row in range(2) for column in range(14)}


def test_orientations_are_the_dihedral_group_equally_likely_with_the_identity_twice(tmp_path):
    image = np.arange(4, dtype=np.uint8).reshape(2, 2, 1).repeat(3, 2)
    for part in ("input", "target"):
        write_image(tmp_path / part / "a.png", image)
    data = PairedImages(tmp_path, 2)
    count = 900
    found = Counter()
    for position in range(count):
        sample = data[SampleKey(1, position, 0)]
        assert torch.equal(sample["degraded"], sample["target"])
        found[tuple(pixels(sample["target"])[..., 0].ravel())] += 1
    turned = [np.rot90(image[..., 0], k) for k in range(4)]
    group = {tuple(view.ravel()) for turn in turned for view in (turn, np.fliplr(turn))}
    assert set(found) == group
    identity = found.pop((0, 1, 2, 3))
    counts = np.array([identity / 2, identity / 2, *found.values()])
    chi_squared = ((counts - count / 9) ** 2 / (count / 9)).sum()
    assert len(counts) == 9 and chi_squared < 24.3  # 0.1 % of chance at 7 degrees of freedom


def test_small_images_are_reflected_at_the_bottom_and_right(folder):
    target = PairedImages(folder, 100, augment=False)[SampleKey(1, 0, 3)]["target"]
    expected = np.pad(coordinates(51, 60, 3), ((0, 49), (0, 40), (0, 0)), mode="reflect")
    assert np.array_equal(pixels(target), expected)


def test_saturation_changes_both_images_alike_in_one_sample_of_three(tmp_path):
    def contrast(image) -> float:
        return np.linalg.norm(image - (image @ LUMA)[..., None])

    images = [60 + noise(8, 8, 3, seed=seed) // 2 for seed in (0, 1)]
    for part, image in zip(("input", "target"), images, strict=True):
        write_image(tmp_path / part / "a.png", image)
    data = PairedImages(tmp_path, 8, augment=False, saturation=True)
    samples = [data[SampleKey(1, position, 0)] for position in range(600)]
    ours, theirs = (
        np.array([contrast(pixels(sample[part])) / contrast(image) for sample in samples])
        for part, image in zip(("degraded", "target"), images, strict=True)
    )
    np.testing.assert_allclose(ours, theirs, atol=0.01)
    changed = ours[ours != 1]
    assert len(changed) == pytest.approx(200, abs=45)
    assert 0.79 < changed.min() < 0.82 and 1.18 < changed.max() < 1.21
    for factor in (0.8, 0.97, 1.2):  # as torchvision changes 8-bit images, as published
        expected = np.asarray(TF.adjust_saturation(Image.fromarray(images[0]), factor))
        assert np.array_equal(change_saturation(images[0], factor), expected)


@pytest.mark.parametrize("size", [PATCH, 100])
@pytest.mark.parametrize("grey", [False, True])
def test_packed_samples_are_the_folders(folder, packed, size, grey):
    ours = PairedImages(folder, size, 5, saturation=True, grey=grey)
    theirs = PackedPairs(packed, size, 5, saturation=True, grey=grey)
    for key in keys(20):
        a, b = ours[key], theirs[key]
        assert torch.equal(a["degraded"], b["degraded"])
        assert torch.equal(a["target"], b["target"]) and a["name"] == b["name"]


def loaded(data, workers, context=None):
    sampler = EpochBatchSampler(len(data), 4, seed=3, repeats=3)
    loader = DataLoader(
        data, batch_sampler=sampler, num_workers=workers, multiprocessing_context=context
    )
    return [torch.cat([batch["degraded"], batch["target"]]) for batch in loader]


def test_samples_do_not_depend_on_workers_or_global_random_state(folder, packed):
    for data in (
        PairedImages(folder, PATCH, 3, saturation=True),
        PackedPairs(packed, PATCH, 3),
        CleanImages(folder / "target", PATCH, 3, degrade=degradation("gaussian0-50")),
    ):
        torch.manual_seed(1)
        np.random.seed(1)
        alone = loaded(data, 0)  # the packed file is open when the workers are forked
        torch.manual_seed(2)
        np.random.seed(2)
        with_workers = loaded(data, 2, "fork")
        assert len(alone) == 4
        assert all(torch.equal(a, b) for a, b in zip(alone, with_workers, strict=True))


def test_an_open_packed_file_can_be_sent_to_another_process(packed):
    data = PackedPairs(packed, PATCH, 3)
    here = data[SampleKey(1, 9, 3)]["degraded"]
    sent = pickle.loads(pickle.dumps(data))  # what spawned workers get
    assert torch.equal(sent[SampleKey(1, 9, 3)]["degraded"], here)


def test_another_seed_epoch_or_position_gives_another_sample(folder):
    first = PairedImages(folder, PATCH, 1)[SampleKey(1, 0, 0)]["target"]
    for seed, key in ((2, (1, 0, 0)), (1, (2, 0, 0)), (1, (1, 1, 0))):
        assert not torch.equal(PairedImages(folder, PATCH, seed)[SampleKey(*key)]["target"], first)


def test_unpaired_files_and_different_sizes_are_reported_at_the_start(folder, tmp_path):
    lonely = shutil.copytree(folder, tmp_path / "lonely")
    (lonely / "input" / "3.png").unlink()
    with pytest.raises(InputError, match=r"1 .*3\.png"):
        PairedImages(lonely, PATCH)

    sizes = shutil.copytree(folder, tmp_path / "sizes")
    for number in (1, 4):
        write_image(sizes / "input" / f"{number}.png", coordinates(50, 61, 0))
    with pytest.raises(InputError, match=r"2 of 5 pairs.*1\.png \(61×50, its target 60×49\), .*4"):
        PairedImages(sizes, PATCH)

    (sizes / "input" / "0.png").write_text("no image")
    with pytest.raises(InputError, match=r"1 files.*0\.png"):
        PairedImages(sizes, PATCH)


def test_a_corrupt_image_names_itself_in_one_line(folder, tmp_path):
    data = PairedImages(spoiled(folder, tmp_path / "data"), PATCH)
    sampler = EpochBatchSampler(5, 2, seed=0)
    with pytest.raises(InputError) as caught:
        list(Batches(data, batch_sampler=sampler, num_workers=1))
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "data" / "input" / "2.png"))
    assert len(message.splitlines()) == 1 and "Traceback" not in message


def test_a_corrupt_image_can_be_left_out_and_is_counted(folder, tmp_path):
    data = PairedImages(spoiled(folder, tmp_path / "data"), PATCH, skip_corrupt=True)
    with pytest.warns(RuntimeWarning, match=r"left out: .*2\.png"):
        samples = [data[SampleKey(1, index, index)] for index in range(5)]
    assert [sample["skipped"] for sample in samples] == [0, 0, 1, 0, 0]
    assert [sample["name"] for sample in samples] == ["0", "1", "3", "3", "4"]
    for file in (tmp_path / "data" / "input").iterdir():
        file.write_bytes(b"")
    with pytest.warns(RuntimeWarning), pytest.raises(InputError, match="none of the 5 images"):
        data[SampleKey(1, 0, 0)]


def test_what_lies_there_decides_the_source(folder, packed, tmp_path):
    gaussian = degradation("gaussian25")
    assert isinstance(open_training_data(folder, PATCH, 0), PairedImages)
    assert isinstance(open_training_data(packed, PATCH, 0), PackedPairs)
    photographs = open_training_data(folder / "target", PATCH, 0, degrade=gaussian)
    assert isinstance(photographs, CleanImages) and len(photographs) == 5
    of_pairs = open_training_data(folder, PATCH, 0, degrade=gaussian)
    of_packed = open_training_data(packed, PATCH, 0, degrade=gaussian)
    for key in keys(5):
        expected = photographs[key]
        for data in (of_pairs, of_packed):
            assert torch.equal(data[key]["degraded"], expected["degraded"])

    pack(folder / "target", tmp_path / "photographs.h5")
    for given, message in {
        folder / "target": "has no input/ and target/; expected them",
        tmp_path / "nothing.h5": "does not exist",
        tmp_path / "photographs.h5": "photographs alone",
    }.items():
        with pytest.raises(InputError, match=message):
            open_training_data(given, PATCH)


def test_gaussian_noise_is_neither_clipped_nor_rounded(tmp_path):
    write_image(tmp_path / "white.png", np.full((64, 64, 3), 255, np.uint8))
    sigma = {}
    for name in ("gaussian25", "gaussian0-50"):
        data = CleanImages(tmp_path, 64, degrade=degradation(name))
        samples = [data[SampleKey(1, position, 0)] for position in range(200)]
        added = [(sample["degraded"] - 1).numpy() for sample in samples]
        assert abs(np.mean(added)) < 1e-3  # clipping would make it negative
        sigma[name] = np.array([255 * one.std() for one in added])
    assert sigma["gaussian25"] == pytest.approx(np.full(200, 25), rel=0.04)
    assert sigma["gaussian0-50"].min() < 3 and sigma["gaussian0-50"].max() > 47
    assert sigma["gaussian0-50"].mean() == pytest.approx(25, abs=4)


def test_grey_is_one_channel(folder):
    sample, coloured = (
        CleanImages(folder / "target", PATCH, augment=False, grey=grey)[keys(1)[0]]["target"]
        for grey in (True, False)
    )
    luma = (coloured * torch.tensor(LUMA)[:, None, None]).sum(0)
    assert sample.shape == (1, PATCH, PATCH)
    assert (sample[0] - luma).abs().max() < 0.6 / 255


def test_unknown_degradations_are_refused():
    assert degradation("") is None
    assert degradation("rain_light") is not None
    for name in ("gauss25", "gaussian", "gaussian50-0", "gaussian-5"):
        with pytest.raises(InputError, match=name):
            degradation(name)


@pytest.mark.parametrize("size", [20, 31, 32, 47])
def test_validation_takes_torchvisions_centre_crop(folder, packed, size):
    for data in (validation(folder, size), validation(packed, size)):
        assert len(data) == 5
        for index in range(5):
            whole = torch.from_numpy(coordinates(48 + index, 60, index)).permute(2, 0, 1)
            expected = TF.center_crop(whole, [size, size]).permute(1, 2, 0).numpy()
            assert np.array_equal(pixels(data[index]["target"]), expected)


def test_validation_noise_is_the_same_each_time_but_not_for_each_image(folder):
    gaussian = degradation("gaussian25")
    first, second = (validation(folder, PATCH, degrade=gaussian) for _ in range(2))
    added = [first[index]["degraded"] - first[index]["target"] for index in range(5)]
    assert torch.equal(first[3]["degraded"], second[3]["degraded"])
    assert float((added[0] - added[1]).abs().max()) > 0.1
    assert validation(folder, 100)[0]["target"].shape == (3, 100, 100)


def test_validation_can_leave_out_corrupt_images(folder, tmp_path):
    spoiled(folder, tmp_path / "data", "target/1.png")
    data = validation(tmp_path / "data", PATCH, skip_corrupt=True)
    assert [data[index]["name"] for index in range(len(data))] == ["0", "2", "3", "4"]
    assert len(data.left_out) == 1 and "1.png" in data.left_out[0]
    with pytest.raises(InputError, match=r"1\.png"):
        validation(tmp_path / "data", PATCH)[1]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [1, 10, 13, 21])
def test_the_ranks_shares_make_up_the_joint_batches(length, world_size):
    whole = EpochBatchSampler(length, 5, seed=8, repeats=2)
    ranks = [
        EpochBatchSampler(length, 5, seed=8, repeats=2, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for sampler in (whole, *ranks):
        sampler.set_position(epoch=4)
    assert len({len(sampler) for sampler in (whole, *ranks)}) == 1
    seen = []
    for number, (joint, *shares) in enumerate(zip(whole, *ranks, strict=True)):
        assert all(shares)
        real = [[key for key in share if key.position >= 0] for share in shares]
        assert [key for share in real for key in share] == joint
        assert len(joint) == whole.joint_size(number)
        assert max(map(len, real)) - min(map(len, real)) <= 1
        seen += joint
    assert Counter(key.index for key in seen) == dict.fromkeys(range(length), 2)
    assert [key.position for key in seen] == list(range(2 * length))
    assert {key.epoch for key in seen} == {4}


def test_a_filler_has_no_weight(folder):
    sampler = EpochBatchSampler(5, 4, seed=0, rank=0, world_size=2)
    *_, last = sampler
    [filler] = last
    sample = PairedImages(folder, PATCH)[filler]
    assert filler.position == -1 and sample["weight"] == 0
    [batch] = DataLoader(PairedImages(folder, PATCH), batch_sampler=[[filler]])
    assert batch["weight"].tolist() == [0] and batch["target"].shape == (1, 3, PATCH, PATCH)


def test_a_resumed_epoch_goes_on_where_it_was():
    sampler = EpochBatchSampler(23, 4, seed=1)
    sampler.set_position(epoch=7)
    whole = list(sampler)
    sampler.set_position(epoch=7, first_batch=2)
    assert len(sampler) == 4 and list(sampler) == whole[2:]
    sampler.set_position(epoch=7, first_batch=6)
    assert len(sampler) == 0 and list(sampler) == []
    with pytest.raises(ValueError, match="batch 7"):
        sampler.set_position(epoch=7, first_batch=7)


def test_the_order_changes_with_seed_and_epoch():
    def order(seed, epoch):
        sampler = EpochBatchSampler(50, 50, seed)
        sampler.set_position(epoch)
        return [key.index for [*batch] in sampler for key in batch]

    orders = [order(0, 1), order(0, 2), order(1, 1), list(range(50))]
    assert order(0, 1) == orders[0]
    assert len({tuple(one) for one in orders}) == 4


def test_a_batch_must_reach_every_rank():
    with pytest.raises(InputError, match=r"OPTIM.BATCH_SIZE: 3 samples for 4 processes"):
        EpochBatchSampler(100, 3, 0, world_size=4)


def test_mixup_blends_whole_pairs_with_shares_from_the_beta_distribution():
    count = 2000
    target = torch.eye(count)[:, None, None]  # N×1×1×N: says which images are in a blend
    degraded, mixed = mixup(2 * target, target, np.random.default_rng(0))
    assert torch.allclose(degraded, 2 * mixed)
    blends = mixed[:, 0, 0]
    assert torch.allclose(blends.sum(1), torch.ones(count))
    assert int((blends > 0).sum(1).max()) == 2
    partners = blends - torch.diag(blends.diag())
    assert int((partners > 0).sum(0).max()) == 1  # a permutation
    shares = blends.diag().numpy()
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.6 + 1)), rel=0.08)


def test_opening_pairs_decodes_nothing(folder, monkeypatch):
    monkeypatch.setattr("dgunet.data.crops.read_rgb", None)
    assert len(PairedImages(folder, PATCH)) == 5


@pytest.mark.parametrize("packs", [False, True])
def test_images_held_out_are_validated_on_and_not_trained_on(folder, packed, packs):
    cfg = CfgNode({"SEED": 0, "DATA": {"DEGRADATION": "", "GREY": False}})
    cfg.TRAINING = CfgNode({"TRAIN_PS": PATCH, "VAL_PS": PATCH, "HOLD_OUT": 2})
    cfg.TRAINING |= {"TRAIN_DIR": str(packed if packs else folder), "VAL_DIR": ""}
    cfg.TRAINING.SKIP_CORRUPT = False
    training, held_out = training_set(cfg), validation_set(cfg)
    assert [training[key]["name"] for key in keys(3)] == ["1", "3", "4"]
    assert [held_out[index]["name"] for index in range(2)] == ["0", "2"]
    cfg.TRAINING.HOLD_OUT = 5
    with pytest.raises(InputError, match="HOLD_OUT is 5, expected fewer than the 5 images"):
        training_set(cfg)
