"""Train DGUNet or DGUNet_plus for deraining.

    python train.py --opts TRAINING.TRAIN_DIR DATA/train TRAINING.VAL_DIR DATA/val

- The published recipe is training.yml, DGUNet_plus's training_plus.yml (--config FILE).
  dgunet/training/configuration.py lists all keys, and --opts KEY VALUE … overrides any.
- Several GPUs: GPU [0,1,2,3], with nn.DataParallel as published.
- Faster, one process a GPU: torchrun --nproc_per_node 4 train.py …
- Several machines, on each: torchrun --nnodes 2 --nproc_per_node 4 --rdzv_backend c10d
  --rdzv_endpoint HOST:29500 train.py …
- Fewer GPUs than fit the batch: OPTIM.ACCUMULATE 4 works it off in four parts.
- Resume: TRAINING.RESUME True; Ctrl-C and SIGTERM save first. Fine-tune: MODEL.WEIGHTS FILE.

Checkpoints, log and TensorBoard go to SAVE_DIR/MODE/models/SESSION/.
"""

from pathlib import Path

from dgunet.base.errors import command
from dgunet.Deraining.data import training_data, validation_data
from dgunet.training import trainer as training
from dgunet.training.losses import LOSSES

RECIPE = {}  # training.yml holds it all
PAPER = (250, 13712, 16)  # epochs, images of Rain13k, batch size
TASK = training.Task(
    "Deraining", RECIPE, LOSSES["Deraining"], training_data, validation_data, PAPER
)


@command
def main() -> None:
    training.main(TASK, Path(__file__).resolve().parent, __doc__)


if __name__ == "__main__":
    main()
