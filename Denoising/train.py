"""Train DGUNet or DGUNet_plus for denoising.

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
from dgunet.Denoising.data import training_data, validation_data
from dgunet.training import trainer as training
from dgunet.training.losses import LOSSES

RECIPE = {
    "OPTIM.WEIGHT_DECAY": 1e-8,
    "OPTIM.COSINE_EXTRA_EPOCHS": 40,
    "DATA.MIXUP_AFTER": 5,
    "TRAINING.VAL_EPOCHS": [1, 25, 45],
    "TRAINING.VAL_ALWAYS_AFTER": 60,
    "TRAINING.VAL_TIMES": 3,
}
PAPER = (80, 96000, 16)  # epochs, patches of SIDD Medium, batch size
TASK = training.Task(
    "Denoising", RECIPE, LOSSES["Denoising"], training_data, validation_data, PAPER
)


@command
def main() -> None:
    training.main(TASK, Path(__file__).resolve().parent, __doc__)


if __name__ == "__main__":
    main()
