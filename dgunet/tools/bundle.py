"""Publish the best weights of a training run: into the task's pretrained_models/, with a record.

    python -m dgunet.tools.bundle checkpoints/Denoising/models/small --name small_gaussian25 \\
        --data "BSD400, 20 photographs held out" --licence "photographs of BSDS500, research use"

writes NAME.safetensors (`model_best.pth` of the run, without the optimizer) and NAME.json, which
says how the weights were made: command, data, configuration, seed, commit, patches seen, time,
hardware and the PSNR on the validation images; and NAME.csv, the run's `log.csv`, of which
`figs/curves.py` draws learning curves. Weights that are there already are replaced only by better
ones. `make results` adds the scores on the test sets.
"""

import json
import math
from pathlib import Path

from dgunet.base.errors import InputError, command
from dgunet.base.files import sha256, write_bytes
from dgunet.base.options import new_parser
from dgunet.data.degradations import describe
from dgunet.model.checkpoint import load_model, save_checkpoint
from dgunet.model.registry import task_folder
from dgunet.training.configuration import read_yaml

NOTED = ("config", "command", "commit", "hardware", "torch")  # by the run


def bundle(run: Path, name: str, folder: Path | None, overwrite: bool = False, **given) -> Path:
    """Write weights and record of a run's folder into `folder` (None: the task's
    `pretrained_models`); return the file of the weights. What is `given` for the record's part
    "training" replaces what the run noted.

    Raises `InputError` if the run has no `model_best.pth` or `config.yml`, or better weights of
    that name are there already, unless `overwrite`.
    """
    best, settings = run / "model_best.pth", run / "config.yml"
    if missing := [file.name for file in (best, settings) if not file.is_file()]:
        raise InputError(f"{run}: has no {' and no '.join(missing)}; expected a validated run")
    network, checkpoint = load_model(best)
    folder = folder or task_folder(network.task) / "pretrained_models"
    weights, record = folder / f"{name}.safetensors", folder / f"{name}.json"
    if record.is_file() and not overwrite:
        before = json.loads(record.read_text(encoding="utf-8")).get("held_out_psnr", math.inf)
        if before >= checkpoint["psnr"]:
            raise InputError(
                f"{weights}: holds weights of {before:.2f} dB on the images held out, these have "
                f"{checkpoint['psnr']:.2f} dB; nothing written (--overwrite replaces them)"
            )
    config = dict(read_yaml(settings))
    for section in config.values():  # where a file was says nothing elsewhere
        for key, value in section.items() if isinstance(section, dict) else ():
            if isinstance(value, str) and Path(value).is_absolute():
                section[key] = Path(value).name
    made = checkpoint.get("made", {})
    training = {
        **{key: made[key] for key in NOTED if key in made},
        "degradation": config["DATA"]["DEGRADATION"],
        "seed": config["SEED"],
        "patches": checkpoint.get("samples"),
        "patch_size": config["TRAINING"]["TRAIN_PS"],
        **({"minutes": round(checkpoint["seconds"] / 60, 1)} if "seconds" in checkpoint else {}),
        **{key: value for key, value in given.items() if value is not None},
    }
    if "minutes" in training and made.get("cores"):
        training["core_hours"] = round(training["minutes"] / 60 * made["cores"], 2)
    save_checkpoint(weights, network)
    content = {
        "file": weights.name,
        "sha256": sha256(weights),
        **network.config,
        **{key: size for key, size in network.sizes.items() if key == "cs_ratio"},
        **({"trained_for": describe(training["degradation"])} if training["degradation"] else {}),
        "training": {key: value for key, value in training.items() if value not in (None, "")},
        "held_out_psnr": checkpoint["psnr"],
        "config": config,
    }
    write_bytes(record, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    log, curve = run / "log.csv", folder / f"{name}.csv"
    curve.unlink(missing_ok=True)  # other weights'
    if log.is_file():
        write_bytes(curve, log.read_bytes())
    return weights


@command
def main(arguments: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN_FOLDER", help="the folder that holds model_best.pth")
    add("--name", required=True, help="of the files, without suffix")
    add("--data", required=True, help="what the run was trained on, and validated on")
    add("--licence", required=True, help="of these data")
    add("--command", help="that trained them (default: as the run noted)")
    add("--hardware", help="(default: as the run noted)")
    add("--output", type=Path, help="folder (default: the task's pretrained_models)")
    add("--overwrite", action="store_true", help="replace better weights, too")
    options = vars(parser.parse_args(arguments))
    weights = bundle(options.pop("run"), folder=options.pop("output"), **options)
    print(f"wrote {weights} and {weights.with_suffix('.json').name}")


if __name__ == "__main__":
    main()
