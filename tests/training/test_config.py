# ruff: noqa: SIM300 (configuration keys are no constants)

import sys
from pathlib import Path

import pytest
import yaml
from training_runs import ROOT, TASKS

from dgunet.base.errors import InputError
from dgunet.model.registry import task_module
from dgunet.tools.keys import updated
from dgunet.training.configuration import KEYS, changes, load_config, model_sizes

# As the published files are written, with the authors' own data folders: epochs, rate, validation,
# patch sizes.
VALUES = {
    "Deblurring": (3000, "1e-4", 10, 256, 256),
    "Deraining": (250, "2e-4", 5, 256, 128),
    "Denoising": (80, "1e-4", 1, 128, 256),
}
PUBLISHED = """\
# Training configuration
GPU: [0,1,2,3]

VERBOSE: True

MODEL:
  MODE: '{task}'
  SESSION: 'DGUNet'

# Optimization arguments.
OPTIM:
  BATCH_SIZE: 16
  NUM_EPOCHS: {0}
  NEPOCH_DECAY: [10]
  LR_INITIAL: {1}
  LR_MIN: 1e-6
  BETA1: 0.9

TRAINING:
  VAL_AFTER_EVERY: {2}
  RESUME: False
  TRAIN_PS: {3}
  VAL_PS: {4}
  TRAIN_DIR: '/authors/own/train'       # path to training data
  VAL_DIR: './authors/own/val'          # path to validation data
  SAVE_DIR: './checkpoints'             # path to save models and images
  SAVE_IMAGES: False
"""


BILLION = "a0: &a0 [1]\n" + "".join(  # 2³⁰ values of 30 lines
    f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 31)
)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def write(folder: Path, text: str) -> Path:
    file = folder / "training.yml"
    file.write_text(text)
    return file


def minimal(folder: Path, data: Path, **sections) -> Path:
    content = {"TRAINING": {"TRAIN_DIR": str(data)}}
    for section, keys in sections.items():
        content[section] = {**content.get(section, {}), **keys} if isinstance(keys, dict) else keys
    return write(folder, yaml.safe_dump(content))


@pytest.fixture
def opts(data):
    """The data folders, which a published file does not name."""
    return ["TRAINING.TRAIN_DIR", str(data), "TRAINING.VAL_DIR", str(data)]


@pytest.mark.parametrize("task", TASKS)
def test_published_files_work_as_they_are(task, tmp_path, opts):
    file = write(tmp_path, PUBLISHED.format(*VALUES[task], task=task))
    with pytest.raises(InputError, match=r"TRAINING.TRAIN_DIR is '/authors/own/train'"):
        load_config(file, recipe=TASKS[task].recipe)
    config = load_config(file, opts, TASKS[task].recipe)
    epochs, rate, every, train, val = VALUES[task]
    paths = {"SAVE_DIR": str(tmp_path / "checkpoints")}
    expected = {
        "GPU": [0, 1, 2, 3],
        "MODEL": {"MODE": task, "NAME": "DGUNet"},
        "OPTIM": {"NUM_EPOCHS": epochs, "LR_INITIAL": float(rate)},
        "DATA": {"MIXUP_AFTER": 5 if task == "Denoising" else -1},  # of the published script
        "TRAINING": {"TRAIN_PS": train, "VAL_PS": val, "VAL_AFTER_EVERY": every, **paths},
    }
    assert changes(config, expected) == [] and model_sizes(config) == {}
    same = {"TRAINING.SAVE_DIR", "OPTIM.NEPOCH_DECAY", "OPTIM.BETA1"}  # without effect
    plus = {"MODEL.NAME", "MODEL.SESSION"}
    for name, differing in (("training", set()), ("training_plus", plus)):
        own = load_config(ROOT / task / f"{name}.yml", opts, TASKS[task].recipe)
        assert {change.split()[0] for change in changes(config, own)} - same == differing


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/*.yml")), ids=lambda p: p.parent.name + p.stem)
def test_every_recipe_that_ships_is_valid(path, opts):
    task = task_module(path.parent.name, "train").TASK
    config = load_config(path, [*opts, "MODEL.WEIGHTS", ""], task.recipe)
    assert config.MODEL.MODE == task.name


def test_opts_override_the_file_and_the_file_the_recipe(tmp_path, data):
    file = minimal(tmp_path, data, OPTIM={"BATCH_SIZE": 4, "NUM_EPOCHS": 5})
    recipe = {"OPTIM.NUM_EPOCHS": 7, "OPTIM.WEIGHT_DECAY": 1e-8}
    config = load_config(file, ["OPTIM.BATCH_SIZE", "2"], recipe)
    assert (config.OPTIM.BATCH_SIZE, config.OPTIM.NUM_EPOCHS) == (2, 5)
    assert config.OPTIM.WEIGHT_DECAY == 1e-8


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("0", "OPTIM.CLIP_GRAD", 0.0),
        ("1", "OPTIM.LR_INITIAL", 1.0),
        ("0,1", "GPU", [0, 1]),
        ("(2, 3)", "GPU", [2, 3]),
        ("1", "GPU", [1]),
        ("True", "TRAINING.RESUME", True),
        ("1e-4", "MODEL.SESSION", "1e-4"),
        ("", "TRAINING.VAL_DIR", ""),
        ("None", "TRAINING.VAL_DIR", ""),
    ],
)
def test_values_on_the_command_line_have_the_type_of_the_key(tmp_path, data, text, key, expected):
    file = minimal(tmp_path, data)
    config = load_config(file, [key, text])
    node, _, name = key.rpartition(".")
    value = (config[node] if node else config)[name]
    assert value == expected and type(value) is type(expected)


def test_relative_paths_start_at_the_file_or_the_current_folder(tmp_path, monkeypatch):
    for folder in ("here/mine", "there/its", "there/val"):
        (tmp_path / folder).mkdir(parents=True)
    paths = {"TRAIN_DIR": "its", "VAL_DIR": "./val", "SAVE_DIR": "../saved"}
    file = write(tmp_path / "there", yaml.safe_dump({"TRAINING": paths}))
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config("../there/training.yml", ["TRAINING.TRAIN_DIR", "mine"])
    assert config.TRAINING.TRAIN_DIR == str(tmp_path / "here/mine")
    assert config.TRAINING.VAL_DIR == str(tmp_path / "there/val")
    assert config.TRAINING.SAVE_DIR == str(tmp_path / "saved")
    config = load_config(file, ["TRAINING.SAVE_DIR", "~/runs"])
    assert config.TRAINING.SAVE_DIR == str(tmp_path / "runs")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("OPTIM: {BATCHSIZE: 4}", "unknown key OPTIM.BATCHSIZE, did you mean OPTIM.BATCH_SIZE?"),
        ("MODELL: {NAME: DGUNet}", "unknown key MODELL"),
        ("MODEL: {CS_RATIO: 10}", "unknown key MODEL.CS_RATIO"),  # compressive sensing has it
        ("OPTIM: 3", "unknown key OPTIM"),
        ("OPTIM: {BATCH_SIZE: True}", "OPTIM.BATCH_SIZE is True, expected a whole number"),
        ("OPTIM: {BATCH_SIZE: 0}", "OPTIM.BATCH_SIZE is 0, expected at least 1"),
        ("OPTIM: {LR_INITIAL: fast}", "OPTIM.LR_INITIAL is 'fast', expected a number"),
        ("OPTIM: {LR_INITIAL: .nan}", "OPTIM.LR_INITIAL is nan, expected above 0"),
        ("OPTIM: {LR_MIN: 1.0}", "OPTIM.LR_MIN is 1.0, expected at most OPTIM.LR_INITIAL"),
        ("OPTIM: {BATCH_SIZE: 2, ACCUMULATE: 3}", "OPTIM.ACCUMULATE is 3, expected at most"),
        ("{OPTIM: {ACCUMULATE: 2}, TRAINING: {COMPILE: max-autotune}}", "TRAINING.COMPILE is 'max"),
        ("GPU: [0, a]", "GPU is [0, 'a'], expected a list of different GPU numbers"),
        ("SEED: 4294967296", "SEED is 4294967296, expected 0 or more, below 2³²"),
        ("MODEL: {SESSION: 7}", "MODEL.SESSION is 7, expected text"),
        ("MODEL: {SESSION: a/b}", "MODEL.SESSION is 'a/b', expected a folder's name"),
        ("MODEL: {WIDTH: 6}", "MODEL.WIDTH is 6, expected a multiple of 4, from 4 to 4096, or"),
        ("MODEL: {STAGES: 1}", "MODEL.STAGES is 1, expected from 2 to 100, or -1, the published"),
        ("DATA: {DEGRADATION: fog}", "DATA.DEGRADATION is 'fog', expected gaussian25 (any"),
        ("TRAINING: {TRAIN_PS: 100}", "TRAINING.TRAIN_PS is 100, expected a multiple of 8"),
        ("TRAINING: {VAL_EPOCHS: [0]}", "TRAINING.VAL_EPOCHS is [0], expected a list of epochs"),
        ("OPTIM: [1, 2", "not a YAML file (while parsing a flow sequence"),
        ("SEED: 1\nSEED: 2\n", "not a YAML file (SEED is there twice"),
        ("- GPU\n- VERBOSE\n", "holds a list, expected keys and values"),
        ("? [a, b]\n: 1", "not a YAML file (a key is no plain value"),
        ("SEED: !!int abc", "not a YAML file (invalid literal for int"),
        ("SEED: 2024-13-45", "not a YAML file (month must be in 1..12"),
        ("SEED: !!python/object/apply:os.abort []", "not a YAML file (could not determine a co"),
        ("SEED: " + "9" * 5000, "not a YAML file (Exceeds the limit"),
        ("SEED: " + "9" * 4000, "an integer of 13,288 bits"),
        ("GPU: " + "[" * 3000, "not a YAML file (maximum recursion depth exceeded"),
        ("GPU: '" + "[" * 300 + "'", "GPU is '[[["),
        ("OPTIM: {BATCH_SIZE: 9999999999999}", "OPTIM.BATCH_SIZE is 9999999999999, expected at"),
        (r'MODEL: {SESSION: "a\0b"}', r"MODEL.SESSION is 'a\x00b', expected a folder's name"),
        (r'TRAINING: {SAVE_DIR: "a\ud800"}', "TRAINING.SAVE_DIR is '"),
        ("A: &a [&b [1]]\n" * 2, "not a YAML file"),
        (BILLION, "nested more than 32 deep, or more than 1,000,000 values"),
    ],
)
def test_errors_name_key_value_and_file(tmp_path, data, text, message):
    file = write(tmp_path, text)
    with pytest.raises(InputError) as error:
        load_config(file, ["TRAINING.TRAIN_DIR", str(data)])
    assert str(error.value).startswith(f"{file}: {message}")
    assert "\n" not in str(error.value)


def test_merge_keys_merge(tmp_path, data):
    sections = "OPTIM: &o {BATCH_SIZE: 3, NUM_EPOCHS: 7}\nDATA: {<<: {REPEATS: 5}, GREY: True}"
    config = load_config(write(tmp_path, sections), ["TRAINING.TRAIN_DIR", str(data)])
    assert (config.DATA.REPEATS, config.DATA.GREY, config.OPTIM.NUM_EPOCHS) == (5, True, 7)


@pytest.mark.parametrize("key", ["TRAINING.TRAIN_DIR", "TRAINING.VAL_DIR", "MODEL.WEIGHTS"])
def test_paths_that_do_not_exist_are_refused(tmp_path, data, key):
    section, name = key.split(".")
    file = minimal(tmp_path, data, **{section: {name: "nowhere"}})
    for opts, source in (((), file), ((key, str(tmp_path / "nowhere")), "--opts")):
        with pytest.raises(InputError, match=f"^{source}: {key} is '{tmp_path}/nowhere', expected"):
            load_config(file, opts)


def test_a_data_folder_is_demanded(tmp_path):
    with pytest.raises(InputError, match=r"TRAINING.TRAIN_DIR is '', expected a data folder"):
        load_config(write(tmp_path, ""))


def test_holding_out_on_the_command_line_replaces_the_files_validation_folder(tmp_path, data):
    file = minimal(tmp_path, data, TRAINING={"VAL_DIR": "nowhere"})
    config = load_config(file, ["TRAINING.HOLD_OUT", "3"])
    assert (config.TRAINING.HOLD_OUT, config.TRAINING.VAL_DIR) == (3, "")
    with pytest.raises(InputError, match=r"HOLD_OUT is 3, expected 0 where TRAINING.VAL_DIR is gi"):
        load_config(file, ["TRAINING.HOLD_OUT", "3", "TRAINING.VAL_DIR", str(data)])
    file = minimal(tmp_path, data, TRAINING={"HOLD_OUT": 3})
    config = load_config(file, ["TRAINING.VAL_DIR", str(data)])
    assert (config.TRAINING.HOLD_OUT, config.TRAINING.VAL_DIR) == (0, str(data))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["OPTIM.BATCH_SIZE"], "'OPTIM.BATCH_SIZE' has no value"),
        (["TRAINING.TRAIN_PS", "20"], "TRAINING.TRAIN_PS is 20, expected a multiple of 8"),
        (["VERBOSE.x", "1"], "unknown key VERBOSE.x"),
        (["MODEL", "1"], "unknown key MODEL"),
    ],
)
def test_errors_of_opts_name_opts(tmp_path, data, opts, message):
    with pytest.raises(InputError) as error:
        load_config(minimal(tmp_path, data), opts)
    assert str(error.value).startswith(f"--opts: {message}")


def test_a_file_that_is_not_text_or_not_there_is_refused(tmp_path):
    file = tmp_path / "training.yml"
    with pytest.raises(FileNotFoundError, match=f"{file}: does not exist; expected a conf"):
        load_config(file)
    file.write_bytes(b"\xff\xfe\x00GPU")
    with pytest.raises(InputError, match="not a YAML file"):
        load_config(file)


def test_the_program_prints_one_line_and_exits_with_2(run):
    line = run(task_module("Deraining", "train"), "--opts", "OPTIM.BATCHSIZE", 4)
    assert line == "error: --opts: unknown key OPTIM.BATCHSIZE, did you mean OPTIM.BATCH_SIZE?\n"


def test_the_larger_model_has_no_last_extra(tmp_path, data):
    file = minimal(tmp_path, data, MODEL={"NAME": "DGUNet_plus", "WIDTH": 8, "LAST_EXTRA": 4})
    assert model_sizes(load_config(file)) == {"width": 8}


def test_the_page_lists_the_keys_of_the_table():
    page = ROOT / "docs" / "training.md"
    command = "python -m dgunet.tools.keys docs/training.md"
    assert updated(page) == page.read_text(encoding="utf-8"), f"write it anew: {command}"


def test_help_lists_every_key_of_the_task(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    with pytest.raises(SystemExit):
        task_module("Compressive_Sensing", "train").main()
    text = capsys.readouterr().out
    assert all(f"\n  {key} " in text for key in (*KEYS, "MODEL.CS_RATIO", "MODEL.PHI"))
