"""What a training run tells: its budget, a progress bar, a line an epoch, TensorBoard."""

import time
from datetime import timedelta
from pathlib import Path

from tqdm import tqdm

from restoration.checkpoint import write_atomically


class RunLog:
    """Talks for the main process; the others stay silent.

    In the run's folder it writes `config.yml`, `train.log` (what it prints, but for the bar) and
    `tensorboard/`.
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

        self.writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=trainer.steps_done)
        config = trainer.config
        write_atomically(
            self.folder / "config.yml", lambda file: file.write(config.dump().encode())
        )
        parameters = sum(p.numel() for p in trainer.model.parameters())
        self.line(
            f"{trainer.task.name} {config.MODEL.NAME}, {parameters:,} parameters, "
            f"on {trainer.devices}, in {self.folder}"
        )
        batch, epochs = config.OPTIM.BATCH_SIZE, config.OPTIM.NUM_EPOCHS
        processors = max(trainer.devices.world_size, len(trainer.devices.ids), 1)
        split = f" ({processors} × {batch / processors:g})" if processors > 1 else ""
        if config.OPTIM.ACCUMULATE > 1:
            split += f" in {config.OPTIM.ACCUMULATE} parts"
        samples = epochs * trainer.sampler.samples
        paper_epochs, paper_images, paper_batch = trainer.task.paper
        paper = paper_epochs * paper_images
        self.line(
            f"budget: batch {batch}{split}, {epochs:,} epochs of "
            f"{trainer.sampler.samples:,} samples "
            f"= {samples:,} samples in {epochs * trainer.sampler.batches:,} steps"
        )
        self.line(
            f"paper:  batch {paper_batch}, {paper_epochs:,} epochs of {paper_images:,} samples "
            f"= {paper:,} samples; this run sees {samples / paper:.3g} of that"
        )

    def progress(self, trainer) -> "Progress":
        return Progress(trainer, shown=self.main and self.verbose)

    def epoch(self, trainer, loss: float, skipped: int, rate: float) -> None:
        lr = trainer.optimizer.param_groups[0]["lr"]
        text = f"epoch {trainer.epoch}: loss {loss:.5f}, lr {lr:.3g}, {rate:.3g} images/s"
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
            self.writer.add_scalar("learning rate", lr, step)
            self.writer.add_scalar("images per second", rate, step)

    def validation(self, trainer, pictures: list) -> None:
        """Keep the PSNR, and pictures as rows of degraded, restored, target (N×C×H×W in [0,1])."""
        if self.writer:
            import torch

            step = trainer.steps_done
            self.writer.add_scalar("validation PSNR", trainer.psnr, step)
            rows = torch.cat([column.float() for column in pictures], dim=3)
            self.writer.add_images("degraded, restored, target", rows.cpu(), step)

    def close(self) -> None:
        if self.writer:
            self.writer.close()


class Progress:
    """A bar over the batches of one epoch, with loss, learning rate, images/s and the run's time
    left."""

    def __init__(self, trainer, shown: bool):
        self.trainer, self.start, self.first = trainer, time.monotonic(), trainer.batch
        epochs = trainer.config.OPTIM.NUM_EPOCHS
        self.bar = tqdm(
            total=trainer.sampler.batches,
            initial=trainer.batch,
            desc=f"epoch {trainer.epoch}/{epochs}",
            disable=not shown,
            leave=False,
            dynamic_ncols=True,
        )

    @property
    def rate(self) -> float:
        """Images a second, over all processes."""
        batches = self.trainer.batch - self.first
        images = batches * self.trainer.config.OPTIM.BATCH_SIZE
        images = min(images, self.trainer.sampler.samples)
        return images / max(time.monotonic() - self.start, 1e-9)

    def advance(self, loss: float) -> None:
        trainer = self.trainer
        total = trainer.config.OPTIM.NUM_EPOCHS * trainer.sampler.samples
        done = trainer.steps_done * trainer.config.OPTIM.BATCH_SIZE
        left = timedelta(seconds=int(max(total - done, 0) / max(self.rate, 1e-9)))
        lr = trainer.optimizer.param_groups[0]["lr"]
        self.bar.set_postfix_str(
            f"loss {loss:.4f}, lr {lr:.2g}, {self.rate:.3g} images/s, run: {left} left",
            refresh=False,
        )
        self.bar.update()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()
