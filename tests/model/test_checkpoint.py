"""Checkpoints: every format there and back, and every way in which a file can be the wrong one."""

import io
import json
import math
import os
import pickle
import re
import resource
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from dgunet.base.errors import InputError
from dgunet.model.checkpoint import (
    load_model,
    load_weights,
    read_checkpoint,
    save_checkpoint,
)
from dgunet.model.published_format import published_names, published_state_dict
from dgunet.model.registry import MODELS, TASKS, build_model

ROOT = Path(__file__).parents[2]
SMALL = {"width": 8, "width_step": 4}
CASES = [(task, model) for task in TASKS for model in MODELS]
TWINS = {("Deblurring", "DGUNet"), ("Denoising", "DGUNet")}  # of the same sizes


def small(task: str = "Deraining", model: str = "DGUNet", seed: int = 0, **sizes):
    """A small network with weights and slopes drawn from the seed."""
    torch.manual_seed(seed)
    if task == "Compressive_Sensing":
        sizes = {"cs_ratio": 1, **sizes}
    network = build_model(task, model, {**SMALL, **sizes})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network


def assert_same_weights(first: nn.Module, second: nn.Module) -> None:
    one, other = first.state_dict(), second.state_dict()
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype and torch.equal(value, other[name]), name
    assert sum(1 for _ in first.parameters()) == sum(1 for _ in second.parameters())


def error_of(action, *arguments, kind=InputError, **keywords) -> str:
    """The message of the error that the call raises: one line that does not ramble."""
    with pytest.raises(kind) as info:
        action(*arguments, **keywords)
    message = str(info.value)
    assert "\n" not in message and len(message) < 500
    assert "weights_only" not in message  # torch recommends to read such files without it
    return message


# There and back


def published_dict(state: dict) -> dict:
    return {"epoch": 3, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}


@pytest.mark.parametrize(
    ("suffix", "content", "prefix", "legacy"),
    [
        (".pth", published_dict, "module.", False),
        (".pth", published_dict, "", True),
        (".pth", dict, "module.", True),
        (".pkl", dict, "module.", True),
        (".pkl", dict, "", False),
        (".pkl", published_dict, "_orig_mod.module.", False),
    ],
)
def test_published_formats(tmp_path, suffix, content, prefix, legacy):
    for task, model in (("Deraining", "DGUNet"), ("Compressive_Sensing", "DGUNet_plus")):
        source, target = small(task, model), small(task, model, seed=1)
        state = {
            prefix + name.removeprefix("module."): value
            for name, value in published_state_dict(source).items()
        }
        file = tmp_path / f"{task}{suffix}"
        torch.save(content(state), file, _use_new_zipfile_serialization=not legacy)
        checkpoint = load_weights(target, file)
        assert_same_weights(target, source)
        assert checkpoint["config"] is None
        assert checkpoint.get("epoch") == (3 if content is published_dict else None)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(("task", "model"), CASES)
def test_own_checkpoints(tmp_path, task, model, suffix):
    source = small(task, model, stages=3)
    file = tmp_path / "new" / f"own{suffix}"
    save_checkpoint(file, source, epoch=5, psnr=31.25, notes={"seed": [1, 2]})
    target = small(task, model, seed=1, stages=3)
    checkpoint = load_weights(target, file)
    assert_same_weights(target, source)
    built, again = load_model(file)
    assert_same_weights(built, source)
    assert not built.training and built.config == source.config
    for read in (checkpoint, again):
        assert read["config"] == source.config
        assert (read["epoch"], read["psnr"], read["notes"]) == (5, 31.25, {"seed": [1, 2]})


def test_safetensors_holds_shared_slopes_once(tmp_path):
    from safetensors import safe_open

    model = small()
    save_checkpoint(tmp_path / "a.safetensors", model, commit="abc")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        names = set(file.keys())
        metadata = file.metadata()
    assert len(names) == sum(1 for _ in model.parameters()) < len(model.state_dict())
    assert (
        json.loads(metadata["config"]) == model.config and json.loads(metadata["commit"]) == "abc"
    )


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"config": "[1", "a": "[" * 100_000}])
def test_safetensors_by_others(tmp_path, metadata):
    from safetensors.torch import save_file

    source, target = small(), small(seed=1)
    save_file(published_state_dict(source), tmp_path / "a.safetensors", metadata)
    load_weights(target, tmp_path / "a.safetensors")
    assert_same_weights(target, source)


def test_a_bare_own_state_dict(tmp_path):
    source, target = small(), small(seed=1)
    torch.save(source.state_dict(), tmp_path / "a.pth")
    load_weights(target, tmp_path / "a.pth")
    assert_same_weights(target, source)
    message = error_of(load_model, tmp_path / "a.pth")
    assert re.search("a.pth: does not say which network it is of; its entries: fgdm", message)


def test_half_precision_files_fill_a_float32_model(tmp_path):
    source, target = small().bfloat16(), small(seed=1)
    save_checkpoint(tmp_path / "a.safetensors", source)
    load_weights(target, tmp_path / "a.safetensors")
    assert_same_weights(target, source.float())


def test_loading_takes_no_random_numbers_and_keeps_sharing(tmp_path):
    save_checkpoint(tmp_path / "a.pth", small("Denoising", "DGUNet_plus"))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    model, _ = load_model(tmp_path / "a.pth")
    assert torch.equal(torch.rand(1), expected)
    assert not any(p.is_meta for p in model.parameters())
    assert model.ipmm[0].shallow[1].slope is model.last.shallow[1].slope
    assert model.fgdm[0].A[1] is model.fgdm[-1].A_adjoint[1]


# Published files say by their shapes what they are of


@pytest.fixture(scope="module")
def published_files(tmp_path_factory, synthetic) -> dict[tuple[str, str], Path]:
    """A file in the published format of each task and model; Deblurring's and Denoising's DGUNet
    are of the same sizes. The weights are zeros, of one storage."""
    folder = tmp_path_factory.mktemp("published")
    files = {}
    for task, model in CASES:
        manifest = json.loads((ROOT / f"tests/fixtures/manifests/{task}.{model}.json").read_text())
        shapes = {f"module.{entry['name']}": entry["shape"] for entry in manifest["entries"]}
        zeros = torch.zeros(max(map(math.prod, shapes.values())))
        state = {name: zeros[: math.prod(shape)].view(shape) for name, shape in shapes.items()}
        files[task, model] = folder / f"{task}.{model}.pth"
        sensing = task == "Compressive_Sensing"
        torch.save(state if sensing else published_dict(state), files[task, model])
    return files


def test_published_files_of_other_networks_are_told_apart(published_files):
    expected = ("Deraining", "DGUNet"), ("Compressive_Sensing", "DGUNet_plus")
    for task, model in expected:
        with torch.device("meta"):
            network = build_model(task, model, {"cs_ratio": 10} if "Sensing" in task else None)
        for (other, other_model), file in published_files.items():
            if (other, other_model) != (task, model):
                other = "Deblurring or Denoising" if (other, other_model) in TWINS else other
                found = f"this is a {other} {other_model} checkpoint, expected {task} {model}"
                assert error_of(load_weights, network, file) == f"{file}: {found}"


def test_published_files_lead_to_their_model(published_files):
    for (task, model), file in published_files.items():
        if (task, model) in {("Deblurring", "DGUNet_plus"), ("Denoising", "DGUNet_plus")}:
            continue  # 70 million parameters
        tasks = [task]
        if (task, model) in TWINS:
            message = error_of(load_model, file)
            expected = "this is a Deblurring or Denoising DGUNet checkpoint, say which task's"
            assert message == f"{file}: {expected}"
            tasks = ["Deblurring", "Denoising"]
        for asked in tasks:
            network, _ = load_model(file, asked)
            assert (network.task, type(network).__name__) == (asked, model)
    file = published_files["Deraining", "DGUNet_plus"]
    found = f"{file}: this is a Deraining DGUNet_plus checkpoint, expected "
    assert error_of(load_model, file, "Denoising") == f"{found}Denoising"
    assert error_of(load_model, file, model="DGUNet") == f"{found}DGUNet"
    assert error_of(load_model, file, "Denoising", "DGUNet") == f"{found}Denoising DGUNet"


@pytest.mark.parametrize(
    ("task", "sizes", "told"),
    [
        (
            "Denoising",
            {"width": 12, "width_step": 2},
            "Deblurring or Deraining or Denoising {} checkpoint "
            "with width 12, width_step 2, expected width 8, width_step 4",
        ),
        (
            "Compressive_Sensing",
            {"cs_ratio": 4},
            "Compressive_Sensing {} checkpoint with cs_ratio 4, expected cs_ratio 1",
        ),
    ],
    ids=lambda value: None,
)
@pytest.mark.parametrize("model", MODELS)
def test_published_files_of_other_sizes(tmp_path, model, task, sizes, told):
    source, file = small(task, model, **sizes), tmp_path / "a.pth"
    torch.save(published_state_dict(source), file)
    loaded, _ = load_model(file, task)
    assert_same_weights(loaded, source)
    assert loaded.config == source.config
    message = error_of(load_weights, small(task, model), file)
    assert message == f"{file}: this is a {told.format(model)}"


# Own files say it in their config


def test_own_files_of_other_networks_are_told_apart(tmp_path):
    for suffix in (".pth", ".safetensors"):
        file = tmp_path / f"a{suffix}"
        save_checkpoint(file, small("Denoising"))
        found = f"{file}: this is a Denoising DGUNet checkpoint"
        message = error_of(load_weights, small("Deraining"), file)
        assert message == f"{found}, expected Deraining DGUNet"
        message = error_of(load_weights, small("Denoising", "DGUNet_plus"), file)
        assert message == f"{found}, expected Denoising DGUNet_plus"
        message = error_of(load_weights, small("Denoising", stages=3), file)  # of the same shapes
        assert message == f"{found} with stages 7, expected stages 3"
        message = error_of(load_weights, small("Denoising", width=12, last_extra=8), file)
        assert message == f"{found} with width 8, last_extra 32, expected width 12, last_extra 8"
        assert error_of(load_model, file, "Deblurring") == f"{found}, expected Deblurring"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"task": "Dehazing"}, "a.pth: unknown task 'Dehazing', expected one of Deblurring, "),
        ({"model": "UNet"}, "unknown model 'UNet', expected one of DGUNet"),
        ({"sizes": {"width": 10**9}}, "a.pth: Deraining DGUNet: .*width is 1000000000, must be"),
        ({"sizes": {"stages": 10**9}}, "stages is 1000000000, must be"),
        (
            {"sizes": {"width": 4096, "width_step": 4096}},
            "of another shape: .*expected \\(4096, 4096",
        ),
        ({"sizes": {}}, "of another shape: .*expected \\(40, "),
        ({"sizes": {"depth": 3}}, "Deraining DGUNet: .*depth"),
        ({"sizes": {3: 3}}, "Deraining DGUNet: .*must be strings"),
        ({"sizes": 7}, "does not say which network"),
        ({"sizes": {"width": torch.zeros(3)}}, "does not say which network"),
        ("Deraining", "does not say which network"),
        ({"model": "DGUNet_plus", "sizes": SMALL}, "DGUNet_plus; entries \\d+ missing: fgdm"),
    ],
)
def test_configs_that_do_not_fit_take_no_memory(tmp_path, config, message):
    model = small()
    if isinstance(config, dict):
        config = {**model.config, **config}
    torch.save({"config": config, "state_dict": model.state_dict()}, tmp_path / "a.pth")
    assert re.search(message, error_of(load_model, tmp_path / "a.pth"))


# Entries that do not fit


def damaged(tmp_path, own: bool, changes: dict) -> str:
    """The error for a checkpoint with these entries (None: without); the model stays as it was."""
    state = small().state_dict() if own else published_state_dict(small())
    state = {name: value for name, value in (state | changes).items() if value is not None}
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    target = small(seed=1)
    message = error_of(load_weights, target, tmp_path / "a.pth")
    assert_same_weights(target, small(seed=1))
    start = f"{tmp_path}/a.pth: does not fit Deraining DGUNet; entries "
    assert message.startswith(start)
    return message.removeprefix(start)


@pytest.mark.parametrize("own", [True, False], ids=["own", "published"])
def test_missing_left_over_and_misshapen_entries_are_named(tmp_path, own):
    image, step, slope = "last.image.weight", "fgdm.2.step_size", "last.shallow.1.slope.weight"
    if not own:
        image, step, slope = (published_names(small())[name] for name in (image, step, slope))

    def told(**changes):
        prefix = "" if own else "module."
        return damaged(tmp_path, own, {prefix + name: value for name, value in changes.items()})

    assert told(**{image: None}) == f"1 missing: {image}"
    assert told(extra=torch.zeros(1), more=torch.zeros(1)) == "2 left over: extra, more"
    assert told(**{step: torch.zeros(2), image: torch.zeros(24, 3, 3, 3)}) == (
        f"2 of another shape: {step} is (2,), expected (1,), "
        f"{image} is (24, 3, 3, 3), expected (3, 24, 3, 3)"
    )
    message = told(**{slope: torch.ones(1)})
    assert message.startswith("1 one parameter, but of different values: ")
    message = told(**{step: torch.ones(1, dtype=torch.int64)})
    assert message == f"1 not floating-point of 16 to 64 bits: {step}"


def test_one_prefixed_name_among_others_is_left_over(tmp_path):
    assert damaged(tmp_path, True, {"module.r0": torch.zeros(1)}) == "1 left over: module.r0"


# Files that are no checkpoints


class RunsCode:
    """Creates a file when it is unpickled the ordinary way."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_malicious_pickles_are_refused(tmp_path, legacy):
    file, ran = tmp_path / "a.pth", tmp_path / "ran"
    state = published_state_dict(small())
    for content in (
        RunsCode(ran),
        {"state_dict": state, "epoch": RunsCode(ran)},
        {"state_dict": {**state, "module.r0": RunsCode(ran)}},
    ):
        torch.save(content, file, _use_new_zipfile_serialization=not legacy)
        for action in (read_checkpoint, load_model, lambda f: load_weights(small(), f)):
            message = error_of(action, file)
            assert message == (
                f"{file}: refused: loading it would run code ({os.system.__module__}.system), "
                "expected tensors and plain values only"
            )
        assert not ran.exists()
    torch.load(file, weights_only=False)  # the test's own bait works
    assert ran.exists()


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_malicious_pickles_of_others_are_refused(tmp_path, protocol):
    """Written without torch, which then cannot say what is wrong with them."""
    file, ran = tmp_path / "a.pth", tmp_path / "ran"
    file.write_bytes(pickle.dumps({"state_dict": RunsCode(ran)}, protocol))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        message = error_of(read_checkpoint, file)
    assert message.startswith(f"{file}: refused: loading it would run code (")
    assert f"{os.system.__module__}.system" in message
    assert not ran.exists()
    pickle.loads(file.read_bytes())  # the test's own bait works
    assert ran.exists()


def test_unreadable_files(tmp_path):
    contents = {"empty": b"", "text": b"<!DOCTYPE html>\n<html>", "noise": bytes(range(256)) * 9}
    for name, legacy in (("zip", False), ("legacy", True)):
        torch.save(small().state_dict(), tmp_path / name, _use_new_zipfile_serialization=not legacy)
        whole = (tmp_path / name).read_bytes()
        for part in (10, len(whole) // 2, len(whole) - 10):
            contents[f"{name}{part}"] = whole[:part]
    for name, content in contents.items():
        file = tmp_path / f"{name}.pth"
        file.write_bytes(content)
        assert error_of(read_checkpoint, file) == (
            f"{file}: not a readable checkpoint: cut off, damaged or not written by torch.save"
        )
    save_checkpoint(tmp_path / "whole.safetensors", small())
    whole = (tmp_path / "whole.safetensors").read_bytes()
    for part in (0, 5, 100, len(whole) - 10):
        file = tmp_path / f"{part}.safetensors"
        file.write_bytes(whole[:part])
        assert f"{file}: not a readable safetensors file (" in error_of(read_checkpoint, file)


@pytest.mark.parametrize(
    "content", [[1], torch.zeros(3), {}, {"state_dict": {}}, {"a": 3}], ids=repr
)
def test_files_without_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    message = error_of(read_checkpoint, tmp_path / "a.pth")
    assert message == f"{tmp_path}/a.pth: holds no state dict, expected names and tensors"


# Files whose few bytes stand for more than memory or time suffice for


def nested() -> list:
    """2⁶⁰ values, in 60 lists."""
    value = ["value"]
    for _ in range(60):
        value = [value, value]
    return value


def compressed(content) -> bytes:
    stored, packed = io.BytesIO(), io.BytesIO()
    torch.save(content, stored)
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return packed.getvalue()


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.zeros(2).to_sparse()}, "a tensor of 2 values of which"),
        ({"epoch": torch.zeros(2, device="meta")}, "a tensor of 2 values of which"),
        ({"a": torch.zeros(1).expand(10**6, 20480)}, "a tensor of 20,480,000,000 values of which"),
        ({"state_dict": {"a": torch.zeros(7).as_strided((4, 4), (1, 1))}}, "of 16 values of which"),
        ({"a": torch.zeros(1), "note": nested()}, "nested more than 32 deep"),
        ({"a": torch.zeros(1), "epoch": 10**5000}, "not a readable checkpoint"),
        ({"x" * 10**6: torch.zeros(1)}, "the name of an entry has 1,000,000 characters"),
        ({"\x1b[2J\x07": torch.zeros(1)}, r"its entries: \\x1b\[2J\\x07$"),
    ],
    ids=["sparse", "meta", "stride 0", "overlapping", "lists", "integer", "name", "escapes"],
)
def test_few_bytes_that_stand_for_much(tmp_path, content, message, legacy):
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    assert re.search(message, error_of(load_model, tmp_path / "a.pth"))


def nested_key() -> bytes:
    """A pickle of a dict whose key is 2⁶⁰ tuples, to hash which would not end."""
    return b"\x80\x02}(" + b")q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"Nu."


def in_zip(pickled: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", b"3\n")
    return packed.getvalue()


def test_compressed_entries_and_keys_that_cannot_be_hashed_are_refused(tmp_path):
    header = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})]
    for data in (
        compressed({"a": torch.zeros(10**6)}),
        in_zip(nested_key()),
        b"".join([*header, nested_key(), pickle.dumps([], 2)]),
    ):
        (tmp_path / "a.pth").write_bytes(data)
        assert "not a readable checkpoint" in error_of(load_model, tmp_path / "a.pth")


def test_numbers_that_are_no_weights_and_long_ones_in_metadata(tmp_path):
    from safetensors.torch import save_file

    model = small()
    state = {name: value.to(torch.float8_e4m3fn) for name, value in model.state_dict().items()}
    torch.save({"config": model.config, "state_dict": state}, tmp_path / "a.pth")
    message = error_of(load_model, tmp_path / "a.pth")
    assert f"{len(state)} not floating-point of 16 to 64 bits" in message
    state = {name: value.clone() for name, value in model.state_dict().items()}
    metadata = {"config": json.dumps(model.config), "epoch": "9" * 5000, "psnr": "9" * 4000}
    save_file(state, tmp_path / "a.safetensors", metadata)
    assert "an integer of 13,288 bits" in error_of(load_model, tmp_path / "a.safetensors")
    metadata.pop("psnr")
    save_file(state, tmp_path / "a.safetensors", metadata)
    assert load_model(tmp_path / "a.safetensors")[1]["epoch"] == "9" * 5000


def test_a_full_disk_is_told_and_leaves_the_old_file(tmp_path):
    """What torch.save makes of it names neither the disk nor the file."""
    file = tmp_path / "a.pth"
    save_checkpoint(file, small())
    before, limits = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError) as full:
            save_checkpoint(file, small())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (full.value.filename, full.value.strerror) == (str(file), "File too large")
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]
