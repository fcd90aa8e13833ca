"""Train DGUNet or DGUNet_plus for denoising.

    python train.py --opts TRAINING.TRAIN_DIR DATA/train TRAINING.VAL_DIR DATA/val
    python train.py --config training_plus.yml --opts …
    torchrun --nproc_per_node 4 train.py --opts …           one process for each of four GPUs
    python train.py --opts TRAINING.RESUME True …           go on with a run

training.yml and training_plus.yml are the published recipes; docs/training.md explains the rest.
All keys, which --opts KEY VALUE … overrides:
"""

from dgunet.base.errors import command
from dgunet.Denoising.data import training_data, validation_data
from dgunet.training import trainer as training
from dgunet.training.losses import clamped_charbonnier

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
    "Denoising", RECIPE, clamped_charbonnier, training_data, validation_data, PAPER
)


@command
def main() -> None:
    training.main(TASK, __doc__)


if __name__ == "__main__":
    main()
