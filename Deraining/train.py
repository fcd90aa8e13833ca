"""Train DGUNet or DGUNet_plus for deraining.

    python train.py --opts TRAINING.TRAIN_DIR DATA/train TRAINING.VAL_DIR DATA/val
    python train.py --config training_plus.yml --opts …
    torchrun --nproc_per_node 4 train.py --opts …           one process for each of four GPUs
    python train.py --opts TRAINING.RESUME True …           go on with a run

training.yml and training_plus.yml are the published recipes; docs/training.md explains the rest.
All keys, which --opts KEY VALUE … overrides:
"""

from dgunet.base.errors import command
from dgunet.Deraining.data import training_data, validation_data
from dgunet.training import trainer as training
from dgunet.training.losses import charbonnier_and_edge

RECIPE = {}  # training.yml holds it all
PAPER = (250, 13712, 16)  # epochs, images of Rain13k, batch size
TASK = training.Task(
    "Deraining", RECIPE, charbonnier_and_edge, training_data, validation_data, PAPER
)


@command
def main() -> None:
    training.main(TASK, __doc__)


if __name__ == "__main__":
    main()
