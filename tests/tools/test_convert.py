"""dgunet.tools.convert: tells files apart, converts them without changing a bit, refuses others."""

import errno
import json
import math
import os
import pickletools
import re
from pathlib import Path

import networks
import pytest
import torch

from dgunet.model.checkpoint import load_model, save_checkpoint
from dgunet.model.network import Network
from dgunet.model.published_format import published_state_dict, unused_entries
from dgunet.model.registry import MODELS, TASKS
from dgunet.tools import convert

MANIFESTS = Path(__file__).parents[1] / "fixtures" / "manifests"
SENSING = "Compressive_Sensing"


def small(task: str = "Deraining", model: str = "DGUNet", **sizes) -> Network:
    """A small network with random weights and slopes, of as many stages as the published ones."""
    ratio = {"cs_ratio": 1} if task == SENSING else {}
    network = networks.small(task, model, **{"stages": 7, **ratio, **sizes})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network


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


@pytest.fixture
def saved(tmp_path) -> Path:
    """A file of a small network."""
    save_checkpoint(tmp_path / "a.pth", small())
    return tmp_path / "a.pth"


# Which file is what


@pytest.mark.parametrize(
    ("task", "model"), [*((task, "DGUNet") for task in TASKS), ("Deraining", "DGUNet_plus")]
)
def test_published_files_are_recognised(tmp_path, run, task, model):
    manifest = json.loads((MANIFESTS / f"{task}.{model}.json").read_text())
    shapes = {f"module.{entry['name']}": entry["shape"] for entry in manifest["entries"]}
    zeros = torch.zeros(max(map(math.prod, shapes.values())))  # of which all entries are views
    state = {name: zeros[: math.prod(shape)].view(shape) for name, shape in shapes.items()}
    file = tmp_path / "a.pth"
    torch.save(state if task == SENSING else {"epoch": 12, "state_dict": state}, file)
    text = run(convert, file, "--info")
    twins = task in ("Deblurring", "Denoising")
    name = f"{task} {model}" + ", ratio 10 %" * (task == SENSING)
    if twins:
        name = "Deblurring or Denoising DGUNet (their sizes are the same)"
    assert text.startswith(f"{file}\n {name}\n")
    assert re.search(r"sizes: .*stages 7, as published\n", text)
    assert f"parameters: {manifest['parameters_used']:,}, float32\n" in text
    assert "format: pickle, published names, " in text
    assert (" epoch: 12\n" in text) == (task != SENSING)
    assert ("unused, dropped: " in text) == bool(manifest["unused"])
    assert f"all {len(state)} entries belong and fit" in text
    assert os.listdir(tmp_path) == ["a.pth"]
    if twins:
        assert f" {task} DGUNet\n" in run(convert, file, "--info", "--task", task)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("task", TASKS)
def test_own_files_are_recognised(tmp_path, run, task, suffix):
    network = small(task, stages=3)
    file = tmp_path / f"a{suffix}"
    save_checkpoint(file, network, epoch=5, psnr=31.254, seconds=60, remark="x" * 100)
    lines = run(convert, file, "--info").splitlines()
    assert lines[1] == f" {task} DGUNet" + ", ratio 1 %" * (task == SENSING)
    for name, value in network.sizes.items():
        assert f"{name} {value}" in lines[2]
    assert "as published" not in lines[2]
    assert "this project's names" in lines[4]
    assert lines[5:7] == [" epoch: 5", " psnr: 31.254"]
    assert lines[7:9] == [f' remark: "{"x" * 34}…{"x" * 34}"', " seconds: 60"]
    assert not any("training state" in line for line in lines)


# There and back


@pytest.mark.parametrize(
    ("task", "model"),
    [("Deraining", "DGUNet"), ("Denoising", "DGUNet_plus"), *((SENSING, m) for m in MODELS)],
)
def test_published_to_ours_and_back(tmp_path, run, task, model):
    network = small(task, model)
    bare = task == SENSING
    file = save_published(tmp_path / "a.pkl", network)
    original = torch.load(file, weights_only=True)

    text = run(convert, file, "--task", task)
    ours = tmp_path / "a.safetensors"
    assert text.endswith(f"written: {ours}, {ours.stat().st_size / 1e6:.1f} MB\n")
    assert ("training state: yes, left out" in text) == (not bare)
    loaded, checkpoint = load_model(ours)
    assert loaded.config == network.config
    assert checkpoint.get("epoch") == (None if bare else 7) and "optimizer" not in checkpoint
    image = torch.rand(1, network.channels, 32, 64)
    with torch.inference_mode():
        assert all(map(torch.equal, network(image), loaded(image)))

    run(convert, ours, "--published")
    back = torch.load(tmp_path / "a_published.pth", weights_only=True)
    if not bare:
        assert back.keys() == {"state_dict", "epoch"} and back["epoch"] == original["epoch"]
        back, original = back["state_dict"], original["state_dict"]
    assert back.keys() == original.keys()
    unused = {f"module.{name}" for name in unused_entries(network)}
    for name, value in original.items():
        assert back[name].shape == value.shape and back[name].dtype == value.dtype
        assert torch.equal(back[name], torch.zeros_like(value) if name in unused else value), name


def test_published_files_need_nothing_that_pytorch_1_1_has_not(tmp_path, saved, run):
    run(convert, saved, "--published", "-o", tmp_path / "model.pth")
    with open(tmp_path / "model.pth", "rb") as file:  # not a zip: pickles, one after the other
        assert file.read(4) != b"PK\x03\x04"
        file.seek(0)
        parts = [list(pickletools.genops(file)) for _ in range(5)]
    found = {(code.name, value) for part in parts for code, value, _ in part}
    names = {value for code, value in found if code in ("GLOBAL", "STACK_GLOBAL")}
    assert names == {
        "collections OrderedDict",
        "torch FloatStorage",
        "torch._utils _rebuild_tensor_v2",
    }
    assert all(value <= 2 for code, value in found if code == "PROTO")


def test_what_the_file_says_cannot_move_the_terminal_nor_fill_it(tmp_path, run):
    notes = {"\x1b]0;title\x07": "\x9b2J", "x" * 10**6: "y" * 10**6}
    path = tmp_path / "a\x1b[31m.pth"
    torch.save({"config": small().config, "state_dict": small().state_dict(), **notes}, path)
    text = run(convert, path)
    assert all(line.isprintable() and len(line) < 500 for line in text.splitlines())
    assert r'\x1b]0;title\x07: "\x9b2J"' in text


def test_training_state_is_left_out(tmp_path, run):
    state = {"optimizer": {"state": {}}, "random": torch.zeros(9)}
    save_checkpoint(tmp_path / "a.pth", small(), epoch=3, training=state, path=1, model=2)
    assert "training state: yes" in run(convert, tmp_path / "a.pth")
    _, checkpoint = load_model(tmp_path / "a.safetensors")
    assert "training" not in checkpoint
    assert [checkpoint[key] for key in ("epoch", "path", "model")] == [3, 1, 2]


# Where it is written


def test_nothing_is_overwritten_unasked(tmp_path, saved, run):
    output = tmp_path / "a.safetensors"
    output.write_bytes(b"\0mine")
    assert f"{output}: exists; --overwrite replaces it, -o FILE names another" in run(
        convert, saved
    )
    assert output.read_bytes() == b"\0mine"
    run(convert, saved, "--overwrite")
    assert load_model(output)[0].config == small().config
    link = tmp_path / "b.safetensors"
    link.hardlink_to(output)
    for arguments in ((), ("--overwrite",), ("-o", link, "--overwrite")):
        assert "would be written over itself" in run(convert, output, *arguments)


def test_options_that_do_not_fit_are_refused(tmp_path, saved, run):
    for name, *options in (["b.pth"], ["b.safetensors", "--published"]):
        line = run(convert, saved, "-o", name, *options)
        assert f"error: {name}: is the name to write to; expected a name in " in line
    assert "error: --info writes nothing" in run(convert, saved, "--info", "--published")
    assert os.listdir(tmp_path) == ["a.pth"]


def test_several_files(tmp_path, saved, run, capsys):
    for name in ("b.pth", "a.pkl"):
        (tmp_path / name).write_bytes(saved.read_bytes())
    (tmp_path / "c.pth").write_bytes(b"")
    (tmp_path / "out").mkdir()
    files = [tmp_path / f"{name}.pth" for name in "acb"]
    with pytest.raises(SystemExit) as info:
        convert.main([*map(str, files), "-o", str(tmp_path / "out")])
    assert info.value.code == 2
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"error: {files[1]}: not a readable checkpoint")
    assert last == "error: 1 of 3 files failed, named above"
    assert sorted(os.listdir(tmp_path / "out")) == ["a.safetensors", "b.safetensors"]
    line = run(convert, *files, "-o", tmp_path / "none")
    assert line.endswith("expected one for the 3 files\n")
    line = run(convert, saved, tmp_path / "a.pkl", "--overwrite")
    assert f"{tmp_path}/a.safetensors: several files would be written there" in line


@pytest.mark.parametrize("published", [False, True])
def test_a_full_disk(tmp_path, saved, run, monkeypatch, published):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    output = tmp_path / "new" / ("b.pth" if published else "b.safetensors")
    line = run(convert, saved, "-o", output, *["--published"] * published)
    assert line == f"error: {output}: No space left on device\n"
    assert not list(output.parent.iterdir())


# What is refused


def test_several_tasks_need_to_be_told_apart(tmp_path, run):
    file = save_published(tmp_path / "a.pth", small())
    message = f"{file}: fits Deblurring and Deraining and Denoising; expected --task to say which"
    assert message in run(convert, file)
    run(convert, file, "--task", "Denoising")
    assert load_model(tmp_path / "a.safetensors")[0].task == "Denoising"


@pytest.mark.parametrize(
    ("stages", "training", "message"),
    [
        (3, None, "the published code has 7 stages, this network 3"),
        (7, 3, "the training state is damaged"),
        (7, {"optimizer": {}}, "the training state is damaged"),
        (7, {"config": {"OPTIM": {"LR_INITIAL": 1}}, "optimizer": {"state": []}}, "is damaged"),
    ],
)
def test_what_the_published_code_could_not_read_is_not_written(
    tmp_path, run, stages, training, message
):
    state = {} if training is None else {"training": training}
    save_checkpoint(tmp_path / "a.pth", small(stages=stages), **state)
    line = run(convert, tmp_path / "a.pth", "--published")
    assert f"{tmp_path}/a_published.pth: not written: " in line and message in line
    assert os.listdir(tmp_path) == ["a.pth"]


def test_values_that_are_not_finite_are_named(tmp_path, run):
    network = small()
    with torch.no_grad():
        network.fgdm[0].step_size.fill_(float("nan"))
        network.last.image.weight[0, 0, 0, 0] = float("inf")
    file = tmp_path / "a.pth"
    save_checkpoint(file, network)
    count = len(network.state_dict())
    for arguments in ((), ("--info",)):
        assert run(convert, file, *arguments) == (
            f"error: {file}: 2 of its {count} entries hold values that are not finite: "
            "fgdm.0.step_size, last.image.weight\n"
        )
    assert os.listdir(tmp_path) == ["a.pth"]


def test_what_is_no_checkpoint(tmp_path, run):
    file = tmp_path / "a.pth"
    torch.save(small().state_dict(), file)
    assert f"{file}: does not say which network it is of" in run(convert, file)
    file.write_text("<!DOCTYPE html>")
    assert "not a readable checkpoint" in run(convert, file)
    assert "does not exist; expected a checkpoint file" in run(convert, tmp_path / "b.pth")
    assert os.listdir(tmp_path) == ["a.pth"]
