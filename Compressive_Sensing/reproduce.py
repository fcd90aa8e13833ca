"""Train for some minutes, score Set11 and BSD68, keep the weights: a row of RESULTS.md.

    python reproduce.py --cs_ratio 25 --minutes 20 --data DIR
    python reproduce.py --cs_ratio 25 --minutes 0 --data DIR     score what training starts from
    python reproduce.py --table                                  RESULTS.md's table anew

DIR holds BSD400, to train on, and Set11 and BSD68. Training is fast.yml's; interrupted, the same
command goes on, and after its end one with more minutes does. Its best weights on photographs held
out of BSD400 go to pretrained_models/, if they are better there than those that lie there, with a
JSON file that says how they were made and how they score.
"""

import argparse
import json
import subprocess
from pathlib import Path

import torch

from dgunet.base.errors import InputError, command
from dgunet.base.files import sha256, write_atomically
from dgunet.Compressive_Sensing import test
from dgunet.Compressive_Sensing.DGUNet import RATIOS
from dgunet.Compressive_Sensing.measure import FOLDER
from dgunet.Compressive_Sensing.train import TASK
from dgunet.model.checkpoint import load_model, save_checkpoint
from dgunet.model.registry import MODELS
from dgunet.scoring.protocols import mean_score
from dgunet.scoring.published import published_scores
from dgunet.scoring.test import load_trained
from dgunet.training.configuration import load_config, plain
from dgunet.training.trainer import Trainer

WEIGHTS = FOLDER / "pretrained_models"
RESULTS = FOLDER / "RESULTS.md"
BEGIN, END = "<!-- table: reproduce.py --table -->", "<!-- end of table -->"


def train(options: argparse.Namespace) -> tuple[Path, Trainer]:
    """Train, or go on training, and return the file of the best weights; without minutes, one of
    the untrained network."""
    start = options.minutes == 0
    opts = ["MODEL.CS_RATIO", options.cs_ratio, "MODEL.NAME", options.model]
    opts += ["TRAINING.MINUTES", options.minutes, "TRAINING.TRAIN_DIR", options.data / "BSD400"]
    opts += ["TRAINING.RESUME", not start]
    opts += ["MODEL.SESSION", "{NAME}_{CS_RATIO}_start"] * start
    config = load_config(
        FOLDER / "fast.yml", [str(word) for word in opts + options.opts], TASK.recipe, TASK.checks
    )
    trainer = Trainer(TASK, config)
    if start:
        save_checkpoint(trainer.folder / "model_start.pth", trainer.model)
        return trainer.folder / "model_start.pth", trainer
    trainer.run()
    return trainer.folder / "model_best.pth", trainer


def keep(best: Path, trainer: Trainer, scores: dict) -> None:
    """Put weights and their JSON file into pretrained_models/, if they are better than those there
    on the photographs held out."""
    network, checkpoint = load_model(best)
    model, ratio = network.config["model"], network.sizes["cs_ratio"]
    file = WEIGHTS / f"{model}_{ratio}.safetensors"
    record = file.with_suffix(".json")
    if record.is_file():
        before = json.loads(record.read_text(encoding="utf-8"))["held_out_psnr"]
        if before >= checkpoint["psnr"]:
            print(f"{file}: stays, {before:.2f} dB on the photographs held out")
            return
    save_checkpoint(file, network)
    content = {
        "file": file.name,
        "sha256": sha256(file),
        "task": TASK.name,
        "model": model,
        "cs_ratio": ratio,
        "sizes": network.sizes,
        "training": {
            "config": "Compressive_Sensing/fast.yml",
            "data": f"BSD400, {trainer.config.TRAINING.HOLD_OUT} photographs held out",
            "seed": trainer.config.SEED,
            "commit": _commit(),
            "patches": checkpoint["samples"],
            "patch_size": trainer.config.TRAINING.TRAIN_PS,
            "minutes": round(checkpoint["seconds"] / 60, 1),
            "hardware": str(trainer.devices),
            "torch": torch.__version__,
        },
        "held_out_psnr": checkpoint["psnr"],
        "mean": {n: [mean_score(s).psnr, mean_score(s).ssim] for n, s in scores.items()},
        "scores": {n: {i.name: [i.psnr, i.ssim] for i in s} for n, s in scores.items()},
        "config": plain(trainer.config),
    }
    for key in ("TRAIN_DIR", "VAL_DIR", "SAVE_DIR"):  # which say nothing elsewhere
        content["config"]["TRAINING"][key] = Path(trainer.config.TRAINING[key]).name
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomically(record, lambda stream: stream.write(text.encode()))
    print(f"wrote {file} and {record}")


def table() -> str:
    """Return the table of all JSON files in pretrained_models/, PSNR (dB) / SSIM."""
    head = [
        "ratio",
        "model",
        *(f"{s} {whose}" for s in test.SETS for whose in ("ours", "published")),
    ]
    head += ["minutes", "crops of", "hardware", "commit"]
    rows = [head, ["---"] * len(head)]
    order = [(ratio, model) for ratio in RATIOS for model in MODELS]
    for ratio, model in order:
        file = WEIGHTS / f"{model}_{ratio}.json"
        if not file.is_file():
            continue
        record = json.loads(file.read_text(encoding="utf-8"))
        cells = [f"{ratio} %", model]
        for name in test.SETS:
            published = published_scores(TASK.name, model).get(f"{name}_{ratio}")
            for score in (record["mean"].get(f"{name}_{ratio}"), published):
                cells.append(f"{score[0]:.2f} / {score[1]:.4f}" if score else "–")
        made = record["training"]
        cells += [f"{made['minutes']:g}", f"{made['patches']:,} × {made['patch_size']}²"]
        rows.append([*cells, made["hardware"], made["commit"]])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write_table() -> None:
    """Replace the table in RESULTS.md."""
    text = RESULTS.read_text(encoding="utf-8")
    before, found, rest = text.partition(BEGIN)
    _, also_found, after = rest.partition(END)
    if not (found and also_found):
        raise InputError(f"{RESULTS}: has no {BEGIN} … {END}")
    text = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    write_atomically(RESULTS, lambda file: file.write(text.encode()))


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        found = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cs_ratio", type=int, choices=RATIOS, default=25, help="(default: %(default)s)")
    add("--model", choices=MODELS, default=MODELS[0], help="(default: %(default)s)")
    add("--minutes", type=float, default=20.0, help="of training (default: %(default)s)")
    add("--data", type=Path, default=FOLDER / "Datasets", metavar="DIR")
    add("--table", action="store_true", help="only make the table")
    add("--opts", nargs="*", default=[], metavar="KEY VALUE", help="as of train.py")
    return parser.parse_args()


@command
def main() -> None:
    options = parse_arguments()
    if not options.table:
        weights, trainer = train(options)
        arguments = ["--weights", str(weights), "--input_dir", str(options.data), "--dataset"]
        results = FOLDER / "results" / trainer.config.MODEL.SESSION
        testing = test.parse_arguments([*arguments, *test.SETS, "--result_dir", str(results)])
        sets = test.find_sets(testing.input_dir, testing.dataset)
        scores = test.run(load_trained(TASK.name, testing), sets, testing)
        if options.minutes == 0:
            return
        keep(weights, trainer, scores)
    write_table()


if __name__ == "__main__":
    main()
