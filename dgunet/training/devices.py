"""One process or many, CPU or GPUs: where a run computes, and what its processes share.

- `GPU: [0]` one GPU; `GPU: [0,1,2,3]` nn.DataParallel over them, as published.
- Started by torchrun, on one machine or several: DistributedDataParallel, one process a GPU (on
  a machine without, the CPU).
- `GPU: []`, or no GPU in the machine: the CPU. On a Mac, `GPU: [0]` is its `mps` device.
"""

import os
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import nn

from dgunet.base.errors import InputError


class Devices:
    """The devices of this process and its place among the others.

    Args:
        gpu: ids of the GPUs, as the configuration names them.

    Attributes:
        device: where this process computes.
        ids: the GPUs of DataParallel; empty otherwise.
        rank, world_size: this process, and how many there are.

    Raises:
        InputError: a GPU that the machine does not have.
    """

    def __init__(self, gpu: Sequence[int]):
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("RANK", 0))
        self.ids: list[int] = []
        self.asked = list(gpu)
        available = torch.cuda.device_count()
        if gpu and available:
            chosen = self._processes_gpus(available) if self.distributed else self.asked
            missing = [i for i in chosen if i >= available]
            if missing:
                raise InputError(
                    f"GPU: {list(gpu)} asks for number {missing[0]}, but CUDA finds {available}, "
                    f"numbered from 0 (--opts GPU [0])"
                )
            self.device = torch.device("cuda", chosen[0])
            torch.cuda.set_device(self.device)
            torch.backends.cudnn.benchmark = True  # patches are of one size
            self.ids = [] if self.distributed else chosen
        elif gpu and torch.backends.mps.is_available() and not self.distributed:
            self.device = torch.device("mps")
        else:
            self.device = torch.device("cpu")
        if self.distributed and not torch.distributed.is_initialized():
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            torch.distributed.init_process_group(backend)

    def _processes_gpus(self, available: int) -> list[int]:
        """Return this process's GPU: of the list, if that has one for every process of the machine,
        else the one of its number."""
        local = int(os.environ.get("LOCAL_RANK", self.rank))
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", local + 1))
        if processes > available:
            raise InputError(
                f"{processes} processes on this machine, but CUDA finds {available} GPUs"
            )
        return [self.asked[local] if len(self.asked) >= processes else local]

    @property
    def distributed(self) -> bool:
        return self.world_size > 1

    @property
    def main(self) -> bool:
        """Whether this process logs and saves."""
        return self.rank == 0

    @property
    def processors(self) -> int:
        """How many devices share a batch."""
        return max(self.world_size, len(self.ids))

    def __str__(self) -> str:
        if self.device.type == "cuda":
            names = ", ".join(torch.cuda.get_device_name(i) for i in self.ids or [self.device])
            return names + (f" × {self.world_size} processes" if self.distributed else "")
        parts = [f"{torch.get_num_threads()} threads"] if self.device.type == "cpu" else []
        if self.distributed:
            parts.append(f"{self.world_size} processes")
        if self.asked and self.device.type == "cpu":
            parts.append(f"torch finds no GPU for GPU: {self.asked}")
        return self.device.type + (f" ({', '.join(parts)})" if parts else "")

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model as the processes or GPUs train it together."""
        if self.distributed:
            ids = [self.device.index] if self.device.type == "cuda" else None
            return nn.parallel.DistributedDataParallel(model, device_ids=ids)
        return nn.DataParallel(model, device_ids=self.ids) if len(self.ids) > 1 else model

    def accumulating(self, network: nn.Module):
        """Context in which gradients stay in this process, for all but a batch's last part."""
        return network.no_sync() if self.distributed else nullcontext()

    def sum(self, *values: float) -> list[float]:
        """Return the sums of the values over the processes."""
        if not self.distributed:
            return list(values)
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        total = torch.tensor(values, dtype=dtype, device=self.device)
        torch.distributed.all_reduce(total)
        return total.tolist()

    def agree(self, *values: float) -> bool:
        """Return whether every process has the same values. Where they differ, at least one process
        gets False."""
        return self.sum(*values) == [self.world_size * value for value in values]

    def close(self) -> None:
        """End what the processes share. All of them must come here."""
        if self.distributed and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
