"""dgunet.tools.convert: tells files apart, converts them without changing a bit, refuses others."""

import errno
import functools
import json
import math
import os
import pickletools
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dgunet.model.checkpoint import load_model, save_checkpoint
from dgunet.model.network import Network
from dgunet.model.published_format import published_state_dict, unused_entries
from dgunet.model.registry import MODELS, TASKS, build_model
from dgunet.tools.convert import main

ROOT = Path(__file__).parents[2]
CASES = [(task, model) for task in TASKS for model in MODELS]
SENSING = "Compressive_Sensing"


def small(task: str = "Deraining", model: str = "DGUNet", **sizes) -> Network:
    """A small network with random weights and slopes."""
    torch.manual_seed(0)
    ratio = {"cs_ratio": 1} if task == SENSING else {}
    network = build_model(task, model, {"width": 8, "width_step": 4, **ratio, **sizes})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network.eval()


def save_published(path: Path, network: Network) -> Path:
    """Write what the published training wrote, in the format of its PyTorch. What takes no part in
    the computation is not zero there."""
    content = state = published_state_dict(network)
    for name in unused_entries(network):
        state[f"module.{name}"] += 1
    if network.task != SENSING:
        optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}
        content = {"epoch": 7, "state_dict": state, "optimizer": optimizer}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def run(capsys, *arguments) -> str:
    """Run the program and return what it prints."""
    main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert not printed.err
    return printed.out


@pytest.fixture
def error(refusal):
    """Run the program, which must fail with one line; return it."""
    return functools.partial(refusal, main)


def image(network: Network) -> Tensor:
    return torch.rand(1, network.channels, 32, 64, generator=torch.Generator().manual_seed(3))


# Which file is what


@pytest.mark.parametrize(("task", "model"), CASES)
def test_published_files_are_recognised(tmp_path, capsys, task, model):
    manifest = json.loads((ROOT / f"tests/fixtures/manifests/{task}.{model}.json").read_text())
    shapes = {f"module.{entry['name']}": entry["shape"] for entry in manifest["entries"]}
    zeros = torch.zeros(max(map(math.prod, shapes.values())))  # of which all entries are views
    state = {name: zeros[: math.prod(shape)].view(shape) for name, shape in shapes.items()}
    file = tmp_path / "a.pth"
    torch.save(state if task == SENSING else {"epoch": 12, "state_dict": state}, file)
    first, *lines = run(capsys, file, "--info").splitlines()
    assert first == str(file)
    twins = model == "DGUNet" and task in ("Deblurring", "Denoising")
    name = f"{task} {model}"
    if twins:
        name = "Deblurring or Denoising DGUNet (their sizes are the same)"
    assert lines[0] == f"  {name}" + (", ratio 10 %" if task == SENSING else "")
    text = "\n".join(lines)
    assert re.search(r"sizes: .*stages 7, as published\n", text)
    assert f"parameters: {manifest['parameters_used']:,}, float32\n" in text
    assert "format: pickle, published names, " in text
    assert ("  epoch: 12\n" in text) == (task != SENSING)
    assert ("unused, dropped: " in text) == bool(manifest["unused"])
    assert f"all {len(state)} entries belong and fit" in text
    assert os.listdir(tmp_path) == ["a.pth"]
    if twins:
        assert f"  {task} DGUNet\n" in run(capsys, file, "--info", "--task", task)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("task", TASKS)
def test_own_files_are_recognised(tmp_path, capsys, task, suffix):
    network = small(task, stages=3)
    file = tmp_path / f"a{suffix}"
    save_checkpoint(file, network, epoch=5, psnr=31.254, seconds=60, remark="x" * 100)
    lines = run(capsys, file, "--info").splitlines()
    assert lines[1] == f"  {task} DGUNet" + (", ratio 1 %" if task == SENSING else "")
    for name, value in network.sizes.items():
        assert f"{name} {value}" in lines[2]
    assert "as published" not in lines[2]
    assert "this project's names" in lines[4]
    assert lines[5:7] == ["  epoch: 5", "  psnr: 31.254"]
    assert lines[7:9] == [f'  remark: "{"x" * 34}…{"x" * 34}"', "  seconds: 60"]
    assert not any("training state" in line for line in lines)


# There and back


@pytest.mark.parametrize(
    ("task", "model"),
    [("Deraining", "DGUNet"), ("Denoising", "DGUNet_plus"), *((SENSING, m) for m in MODELS)],
)
def test_published_to_ours_and_back(tmp_path, capsys, task, model):
    network = small(task, model)
    bare = task == SENSING
    file = save_published(tmp_path / "a.pkl", network)
    original = torch.load(file, weights_only=True)

    text = run(capsys, file, "--task", task)
    ours = tmp_path / "a.safetensors"
    assert text.endswith(f"written: {ours}, {ours.stat().st_size / 1e6:.1f} MB\n")
    assert ("training state: yes, left out" in text) == (not bare)
    loaded, checkpoint = load_model(ours)
    assert loaded.config == network.config
    assert checkpoint.get("epoch") == (None if bare else 7) and "optimizer" not in checkpoint
    with torch.inference_mode():
        for one, other in zip(network(image(network)), loaded(image(network)), strict=True):
            assert torch.equal(one, other)

    text = run(capsys, ours, "--published")
    back = torch.load(tmp_path / "a_published.pth", weights_only=True)
    if not bare:
        assert back.keys() == {"state_dict", "epoch"} and back["epoch"] == original["epoch"]
        back, original = back["state_dict"], original["state_dict"]
    assert back.keys() == original.keys()
    unused = {f"module.{name}" for name in unused_entries(network)}
    for name, value in original.items():
        assert back[name].shape == value.shape and back[name].dtype == value.dtype
        assert torch.equal(back[name], torch.zeros_like(value) if name in unused else value), name


def test_published_files_need_nothing_that_pytorch_1_1_has_not(tmp_path, capsys):
    save_checkpoint(tmp_path / "a.safetensors", small(), epoch=3)
    run(capsys, tmp_path / "a.safetensors", "--published", "-o", tmp_path / "model.pth")
    with open(tmp_path / "model.pth", "rb") as file:  # not a zip: pickles, one after the other
        assert file.read(4) != b"PK\x03\x04"
        file.seek(0)
        parts = [list(pickletools.genops(file)) for _ in range(5)]
    names = {
        value
        for part in parts
        for code, value, _ in part
        if code.name in ("GLOBAL", "STACK_GLOBAL")
    }
    assert names == {
        "collections OrderedDict",
        "torch FloatStorage",
        "torch._utils _rebuild_tensor_v2",
    }
    assert all(value <= 2 for part in parts for code, value, _ in part if code.name == "PROTO")


def test_what_the_file_says_cannot_move_the_terminal_nor_fill_it(tmp_path, capsys):
    notes = {"\x1b]0;title\x07": "\x9b2J", "x" * 10**6: "y" * 10**6}
    path = tmp_path / "a\x1b[31m.pth"
    torch.save({"config": small().config, "state_dict": small().state_dict(), **notes}, path)
    text = run(capsys, path)
    assert all(line.isprintable() and len(line) < 500 for line in text.splitlines())
    assert r'\x1b]0;title\x07: "\x9b2J"' in text


def test_training_state_is_left_out(tmp_path, capsys):
    state = {"optimizer": {"state": {}}, "random": torch.zeros(9)}
    save_checkpoint(tmp_path / "a.pth", small(), epoch=3, training=state, path=1, model=2)
    assert "training state: yes" in run(capsys, tmp_path / "a.pth")
    _, checkpoint = load_model(tmp_path / "a.safetensors")
    assert "training" not in checkpoint
    assert [checkpoint[key] for key in ("epoch", "path", "model")] == [3, 1, 2]


# Where it is written


def test_nothing_is_overwritten_unasked(tmp_path, capsys, error):
    file, output = tmp_path / "a.pth", tmp_path / "a.safetensors"
    save_checkpoint(file, small())
    output.write_bytes(b"\0mine")
    message = error(file)
    assert message == f"{output}: exists; --overwrite replaces it, -o FILE names another"
    assert output.read_bytes() == b"\0mine"
    run(capsys, file, "--overwrite")
    assert load_model(output)[0].config == small().config
    link = tmp_path / "b.safetensors"
    link.hardlink_to(output)
    for arguments in ((), ("--overwrite",), ("-o", link, "--overwrite")):
        assert "would be written over itself" in error(output, *arguments)


def test_names_of_the_other_format_are_refused(tmp_path, error):
    save_checkpoint(tmp_path / "a.pth", small())
    for arguments in (("b.pth",), ("b.safetensors", "--published")):
        message = error(tmp_path / "a.pth", "-o", *arguments)
        assert message.startswith(f"{arguments[0]}: is the name to write to; expected a name in ")
    assert os.listdir(tmp_path) == ["a.pth"]


def test_several_files(tmp_path, capsys, error):
    for name in ("a", "b"):
        save_checkpoint(tmp_path / f"{name}.pth", small())
    (tmp_path / "c.pth").write_bytes(b"")
    (tmp_path / "out").mkdir()
    files = [tmp_path / f"{name}.pth" for name in "acb"]
    with pytest.raises(SystemExit) as info:
        main([*map(str, files), "-o", str(tmp_path / "out")])
    assert info.value.code == 2
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"error: {files[1]}: not a readable checkpoint")
    assert last == "error: 1 of 3 files failed, named above"
    assert sorted(os.listdir(tmp_path / "out")) == ["a.safetensors", "b.safetensors"]
    assert error(*files, "-o", tmp_path / "none").endswith("expected one for the 3 files")
    save_checkpoint(tmp_path / "a.pkl", small())
    message = error(tmp_path / "a.pth", tmp_path / "a.pkl", "--overwrite")
    assert message == f"{tmp_path}/a.safetensors: several files would be written there"


def test_info_takes_no_output(tmp_path, error):
    message = error(tmp_path / "a.pth", "--info", "--published")
    assert message.startswith("--info writes nothing")


@pytest.mark.parametrize("published", [False, True])
def test_a_full_disk(tmp_path, error, monkeypatch, published):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "a.pth"
    save_checkpoint(file, small())
    monkeypatch.setattr(os, "fsync", full)
    output = tmp_path / "new" / ("b.pth" if published else "b.safetensors")
    message = error(file, "-o", output, *["--published"] * published)
    assert message == f"{output}: No space left on device"
    assert not list(output.parent.iterdir())


# What is refused


def test_several_tasks_need_to_be_told_apart(tmp_path, capsys, error):
    file = save_published(tmp_path / "a.pth", small())
    message = error(file)
    assert message == (
        f"{file}: fits Deblurring and Deraining and Denoising; expected --task to say which"
    )
    run(capsys, file, "--task", "Denoising")
    assert load_model(tmp_path / "a.safetensors")[0].task == "Denoising"


def test_other_numbers_of_stages_do_not_fit_the_published_code(tmp_path, error):
    save_checkpoint(tmp_path / "a.pth", small(stages=3))
    output = tmp_path / "a_published.pth"
    message = error(tmp_path / "a.pth", "--published")
    expected = "not written: the published code has 7 stages, this network 3"
    assert message == f"{output}: {expected}"
    assert not output.exists()


@pytest.mark.parametrize(
    "training",
    [3, {"optimizer": {}}, {"config": {"OPTIM": {"LR_INITIAL": 1}}, "optimizer": {"state": []}}],
    ids=str,
)
def test_a_damaged_training_state_is_not_published(tmp_path, error, training):
    save_checkpoint(tmp_path / "a.pth", small(), training=training)
    message = error(tmp_path / "a.pth", "--published")
    assert message.endswith("a_published.pth: not written: the training state is damaged")
    assert os.listdir(tmp_path) == ["a.pth"]


def test_values_that_are_not_finite_are_named(tmp_path, error):
    network = small()
    with torch.no_grad():
        network.fgdm[0].step_size.fill_(float("nan"))
        network.last.image.weight[0, 0, 0, 0] = float("inf")
    file = tmp_path / "a.pth"
    save_checkpoint(file, network)
    count = len(network.state_dict())
    for arguments in ((), ("--info",)):
        assert error(file, *arguments) == (
            f"{file}: 2 of its {count} entries hold values that are not finite: "
            "fgdm.0.step_size, last.image.weight"
        )
    assert os.listdir(tmp_path) == ["a.pth"]


def test_what_is_no_checkpoint(tmp_path, error):
    file = tmp_path / "a.pth"
    torch.save(small().state_dict(), file)
    assert error(file).startswith(f"{file}: does not say which network it is of")
    file.write_text("<!DOCTYPE html>")
    assert "not a readable checkpoint" in error(file)
    assert error(tmp_path / "b.pth").endswith("does not exist; expected a checkpoint file")
    assert os.listdir(tmp_path) == ["a.pth"]
