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
        precision = config.TRAINING.PRECISION
        self.line(
            f"{trainer.task.name} {config.MODEL.NAME}, {parameters:,} parameters, "
            f"in {precision} on {trainer.devices}, in {self.folder}"
        )
        if warning := slow_precision(trainer.devices.device, precision):
            self.line(warning)
        self._budget(trainer)
        for note in getattr(trainer.training_data, "notes", []):
            self.line(note)
        data = trainer.validation_data
        if data is None:
            self.line("validation: none (TRAINING.VAL_DIR), so there will be no model_best.pth")
        else:
            missing = f"; {len(data.left_out)} left out: {first_few(data.left_out)}"
            self.line(f"validation: {len(data):,} images{missing if data.left_out else ''}")

    def _budget(self, trainer) -> None:
        optim, processors = trainer.config.OPTIM, trainer.devices.processors
        split = f" ({processors} × {optim.BATCH_SIZE / processors:g})" if processors > 1 else ""
        if optim.ACCUMULATE > 1:
            split += f" in {optim.ACCUMULATE} parts"
        paper = trainer.task.paper
        paper_epochs, images, paper_batch = paper(trainer.config) if callable(paper) else paper
        paper_samples, samples = paper_epochs * images, trainer.samples_in_all
        length = (
            f"{trainer.epochs:.4g} epochs of {trainer.sampler.samples:,} samples = {samples:,} "
            f"samples in {trainer.schedule.steps:,} steps"
        )
        share = f"; this run sees {samples / paper_samples:.3g} of that"
        if not trainer.epochs:
            length, share = f"{trainer.minutes:g} minutes", ""
        self.line(f"budget: batch {optim.BATCH_SIZE}{split}, {length}")
        self.line(
            f"paper:  batch {paper_batch}, {paper_epochs:,} epochs of {images:,} samples "
            f"= {paper_samples:,} samples{share}"
        )

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
        best = trainer.best
        if trainer.psnr is not None:
            text += f", PSNR {trainer.psnr:.2f} dB"
            text += f" (best {best['psnr']:.2f} in epoch {best['epoch']})"
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
        file, lines = self.folder / "log.csv", [",".join(COLUMNS)]
        if file.is_file() and samples:
            for line in file.read_text(encoding="utf-8").splitlines():
                seen, *rest = line.split(",")
                if len(rest) == len(COLUMNS) - 1 and seen.isdigit() and int(seen) <= samples:
                    lines.append(line)
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
