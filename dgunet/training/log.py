"""What a training run tells: budget, progress bar, a line for each epoch, log.csv, TensorBoard."""

import shlex
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import torch
from tqdm import tqdm

from dgunet.base.errors import first_few
from dgunet.base.files import write_bytes
from dgunet.inference.device import slow_precision
from dgunet.training.devices import Devices

COLUMNS = ("samples", "minutes", "psnr", "learning_rate")


class RunLog:
    """Talks for the main process; the others stay silent.

    In the run's folder it writes `config.yml`, `train.log` (what it prints, but for the bar),
    `log.csv` (a row of `COLUMNS` for each validation) and `tensorboard/`.
    """

    def __init__(self, folder: Path, main: bool, verbose: bool):
        self.folder, self.main, self.verbose = folder, main, verbose
        self.writer = None
        if main:
            folder.mkdir(parents=True, exist_ok=True)

    def line(self, text: str) -> None:
        if self.main:
            tqdm.write(text)
            with open(self.folder / "train.log", "a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def start(self, trainer) -> None:
        """Print what runs where, and the budget beside the paper's; keep the configuration."""
        if not self.main:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(
            str(self.folder / "tensorboard"), purge_step=trainer.steps_done + 1
        )
        config = trainer.config
        write_bytes(self.folder / "config.yml", config.dump().encode())
        self._start_csv(trainer.samples_seen)
        parameters = sum(p.numel() for p in trainer.model.parameters())
        precision, device = config.TRAINING.PRECISION, trainer.devices.device
        self.line(
            f"{trainer.task.name} {config.MODEL.NAME}, {parameters:,} parameters, "
            f"in {precision} on {trainer.devices}, in {self.folder}"
        )
        if warning := slow_precision(device, precision):
            self.line(warning)
        batch, epochs = config.OPTIM.BATCH_SIZE, trainer.epochs
        processors = trainer.devices.processors
        split = f" ({processors} × {batch / processors:g})" if processors > 1 else ""
        if config.OPTIM.ACCUMULATE > 1:
            split += f" in {config.OPTIM.ACCUMULATE} parts"
        samples = trainer.samples_in_all
        paper = trainer.task.paper
        paper_epochs, paper_images, paper_batch = paper(config) if callable(paper) else paper
        paper = paper_epochs * paper_images
        length = (
            f"{epochs:.4g} epochs of {trainer.sampler.samples:,} samples = {samples:,} samples in "
            f"{trainer.schedule.steps:,} steps"
        )
        share = f"; this run sees {samples / paper:.3g} of that"
        if not epochs:
            length, share = f"{trainer.minutes:g} minutes", ""
        self.line(f"budget: batch {batch}{split}, {length}")
        self.line(
            f"paper:  batch {paper_batch}, {paper_epochs:,} epochs of {paper_images:,} samples "
            f"= {paper:,} samples{share}"
        )
        for note in getattr(trainer.training_data, "notes", []):
            self.line(note)
        data = trainer.validation_data
        if data is None:
            self.line("validation: none (TRAINING.VAL_DIR), so there will be no model_best.pth")
        else:
            left_out = getattr(data, "left_out", [])
            missing = f"; {len(left_out)} left out: {first_few(left_out)}" if left_out else ""
            self.line(f"validation: {len(data):,} images{missing}")

    def bar(self, trainer) -> tqdm:
        """Return a progress bar over the images of the whole run."""
        return tqdm(
            total=trainer.samples_in_all,
            initial=trainer.samples_seen,
            unit=" images",
            disable=not (self.main and self.verbose),
            leave=False,
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 30,  # seconds; few lines in a log file
        )

    def epoch(self, trainer, loss: float, skipped: int, rate: float) -> None:
        text = f"epoch {trainer.epoch}: loss {loss:.5f}, lr {trainer.rate:.3g}, {rate:.3g} images/s"
        if trainer.psnr is not None:
            best = trainer.best
            text += (
                f", PSNR {trainer.psnr:.2f} dB (best {best['psnr']:.2f} in epoch {best['epoch']})"
            )
        if skipped:
            text += f", {skipped} samples left out as unreadable"
        self.line(text)
        if self.writer:
            step = trainer.steps_done
            self.writer.add_scalar("loss", loss, step)
            self.writer.add_scalar("learning rate", trainer.rate, step)
            self.writer.add_scalar("images per second", rate, step)

    def _start_csv(self, samples: int) -> None:
        """Begin `log.csv`, or keep the rows up to where a resumed run stands."""
        file, rows = self.folder / "log.csv", []
        if file.is_file() and samples:
            old = [line.split(",") for line in file.read_text(encoding="utf-8").splitlines()[1:]]
            whole = [row for row in old if len(row) == len(COLUMNS) and row[0].isdigit()]
            rows = [row for row in whole if int(row[0]) <= samples]
        lines = [",".join(COLUMNS), *(",".join(row) for row in rows)]
        write_bytes(file, "".join(f"{line}\n" for line in lines).encode())

    def validation(self, trainer, pictures: list) -> None:
        """Keep the PSNR, and pictures as rows of degraded, restored, target (N×C×H×W in [0,1])."""
        minutes = trainer.seconds / 60
        if trainer.minutes:
            self.line(
                f"after {minutes:.1f} minutes, {trainer.samples_seen:,} samples: "
                f"PSNR {trainer.psnr:.2f} dB"
            )
        if self.main:
            row = f"{trainer.samples_seen},{minutes:.3f},{trainer.psnr:.4f},{trainer.rate:.6g}\n"
            with open(self.folder / "log.csv", "a", encoding="utf-8") as file:
                file.write(row)
        if self.writer:
            step = trainer.steps_done
            self.writer.add_scalar("validation PSNR", trainer.psnr, step)
            rows = torch.cat([column.float() for column in pictures], dim=3)
            picture = torch.cat(list(rows), dim=1)
            self.writer.add_image("degraded, restored, target", picture.cpu(), step)

    def close(self) -> None:
        if self.writer:
            self.writer.close()


def made(devices: Devices, recipe: Path | None) -> dict:
    """Return how weights are made, for the record that `dgunet.tools.bundle` writes."""
    told = {"commit": _commit(), "hardware": str(devices), "torch": str(torch.__version__)}
    told["command"] = shlex.join(["python", *sys.argv])
    if recipe:
        told["config"] = f"{recipe.resolve().parent.name}/{recipe.name}"
    if devices.device.type == "cpu":
        told["cores"] = torch.get_num_threads() * devices.world_size
    return told


@cache
def _commit() -> str:
    """Return the commit of this checkout, `-dirty` after it where files differ from it."""
    git = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        found = subprocess.run(
            git, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
