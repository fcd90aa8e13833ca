"""Put weights into a folder as model hubs expect it: config.json, model.safetensors, README.md.

    python -m dgunet.tools.publish small_gaussian25 -o FOLDER
    hf upload USER/NAME FOLDER                             (the command comes with huggingface_hub)

`Restorer.from_pretrained` loads the folder, or `USER/NAME` once it is uploaded. README.md is a
model card made from the JSON record beside the weights: what they were trained on and for, their
scores, limits and licence. Without a record the card says that these are not known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from dgunet.base.errors import command
from dgunet.base.files import write_bytes
from dgunet.base.options import new_parser
from dgunet.model.checkpoint import load_model, save_checkpoint
from dgunet.model.network import Network
from dgunet.model.pretrained import find_weights, read_record
from dgunet.scoring.tables import markdown
from dgunet.tools.export import describe

CARD = """\
---
license: {licence}
library_name: dgunet
pipeline_tag: image-to-image
tags: [image-restoration, {tag}]
---

# {name}

{model} for {task} (Mou, Wang, Zhang, "Deep Generalized Unfolding Networks for Image Restoration",
CVPR 2022), {parameters:,} parameters: {sizes}.

```python
from dgunet import Restorer

restorer = Restorer.from_pretrained("FOLDER or USER/NAME")
restored = restorer(image)  # NumPy array or tensor, of any size
```

## Trained for

{degradation}

## Training data

{data}

## Scores

{scores}

## Limits

Trained for the degradation above and no other. On images degraded otherwise the result may be worse
than the input. What a network restores is an estimate: do not take details of it for evidence.

## Licence

{licence_note}
"""
UNKNOWN = "Not known: the weights came without a record."


def publish(weights: Path, folder: Path) -> None:
    """Write the folder. Raises as `dgunet.model.checkpoint.load_model`."""
    network, _ = load_model(weights)
    config = json.dumps({**network.config, "library": "dgunet"}, indent=2)
    write_bytes(folder / "config.json", config.encode())
    save_checkpoint(folder / "model.safetensors", network)
    write_bytes(folder / "README.md", model_card(weights, network).encode())


def model_card(weights: Path, network: Network) -> str:
    """Return the README.md of a network, in Markdown."""
    record, says = read_record(weights) or {}, describe(weights, network)
    training = record.get("training", {})
    data = [f"* {key.replace('_', ' ')}: {value}" for key, value in training.items()]
    task = network.task.lower()
    return CARD.format(
        name=weights.stem,
        model=says["model"],
        task=task.replace("_", " "),
        tag=task.replace("_", "-"),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        sizes=", ".join(f"{key} {value}" for key, value in network.sizes.items()),
        degradation=says["degradation"] or UNKNOWN,
        data="\n".join(data) or UNKNOWN,
        scores=_scores(record) or UNKNOWN,
        licence="mit" if says["licence"] else "other",
        licence_note=f"The weights: {says['licence']}. The training data: {says['data_licence']}."
        if says["licence"]
        else "Not known: that of whoever trained the weights.",
    )


def _scores(record: Mapping) -> str:
    """Return the scores of a record as a table; nothing where there are none."""
    rows = []
    for name, row in record.get("scores", {}).items():
        degraded = "–"
        if "degraded_psnr" in row:
            degraded = f"{row['degraded_psnr']:.2f} / {row['degraded_ssim']:.4f}"
        rows.append([name, row["protocol"], degraded, f"{row['psnr']:.2f} / {row['ssim']:.4f}"])
    headers = ["test set", "protocol", "degraded: PSNR, dB / SSIM", "restored"]
    return markdown(rows, headers) if rows else ""


@command
def main() -> None:
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("weights", metavar="WEIGHTS", help="a checkpoint, or the name of bundled weights")
    add("-o", "--output", type=Path, required=True, metavar="FOLDER", help="the folder to write")
    options = parser.parse_args()
    publish(find_weights(options.weights), options.output)
    print(f"{options.output}: config.json, model.safetensors, README.md")


if __name__ == "__main__":
    main()
