"""One process or many, CPU or GPUs: where a run computes, and what its processes share.

- `GPU: [0]` one GPU; `GPU: [0,1,2,3]` nn.DataParallel over them, as published. On a Mac, its `mps`
  device.
- Started by torchrun, on one machine or several: DistributedDataParallel, one process a GPU.
- `GPU: []` the CPU, with torchrun also several processes of it.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn

from dgunet.base.errors import InputError
from dgunet.inference.device import check_card


class Devices:
    """The `device` of this process, and its `rank` among `world_size` processes. `ids` are the GPUs
    of DataParallel, and empty otherwise.

    `gpu` are the ids of the GPUs, as the configuration names them. Raises `InputError` for one that
    the machine does not have, or that PyTorch has no code for.
    """

    def __init__(self, gpu: Sequence[int]):
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("RANK", 0))
        self.ids: list[int] = []
        self.device = torch.device("cpu")
        available = torch.cuda.device_count()
        if gpu and available:
            chosen = self._processes_gpus(gpu, available) if self.distributed else list(gpu)
            if missing := [i for i in chosen if i >= available]:
                raise InputError(
                    f"GPU: {list(gpu)} asks for number {missing[0]}, but CUDA finds {available}, "
                    "numbered from 0"
                )
            for number in chosen:
                check_card(torch.device("cuda", number))
            self.device = torch.device("cuda", chosen[0])
            torch.cuda.set_device(self.device)
            torch.backends.cudnn.benchmark = True  # patches are of one size
            self.ids = [] if self.distributed else chosen
        elif gpu and torch.backends.mps.is_available() and not self.distributed:
            self.device = torch.device("mps")
        elif gpu:  # a run of days must not start on a CPU by mistake
            raise InputError(
                f"GPU: {list(gpu)}, but PyTorch {torch.__version__} finds no GPU; expected one, or "
                "--opts GPU [] for the CPU"
            )
        if self.distributed and not torch.distributed.is_initialized():
            if self.device.type == "cuda":
                torch.distributed.init_process_group("nccl", device_id=self.device)
            else:
                torch.distributed.init_process_group("gloo")

    def _processes_gpus(self, gpu: Sequence[int], available: int) -> list[int]:
        """Return this process's GPU: of the list, if that has one for every process of the machine,
        else the one of its number."""
        local = int(os.environ.get("LOCAL_RANK", self.rank))
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", local + 1))
        if processes > available:
            raise InputError(
                f"{processes} processes on this machine, but CUDA finds {available} GPUs"
            )
        return [gpu[local] if len(gpu) >= processes else local]

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
        processes = f"{self.world_size} processes" * self.distributed
        if self.device.type == "cuda":
            names = ", ".join(torch.cuda.get_device_name(i) for i in self.ids or [self.device])
            return names + f" × {processes}" * self.distributed
        threads = f"{torch.get_num_threads()} threads" * (self.device.type == "cpu")
        details = ", ".join(filter(None, [threads, processes]))
        return f"{self.device.type} ({details})" if details else self.device.type

    def wrap(self, model: nn.Module, static_graph: bool) -> nn.Module:
        """Return the model as the processes or GPUs train it together. `static_graph`: every
        backward pass goes through the same graph and exchanges gradients."""
        if self.distributed:
            ids = [self.device.index] if self.device.type == "cuda" else None
            return nn.parallel.DistributedDataParallel(
                model, device_ids=ids, gradient_as_bucket_view=True, static_graph=static_graph
            )
        return nn.DataParallel(model, device_ids=self.ids) if len(self.ids) > 1 else model

    def accumulating(self, network: nn.Module):
        """Context in which gradients stay in this process, for all but a batch's last part."""
        return network.no_sync() if self.distributed else nullcontext()

    def sum(self, *values: float | Tensor) -> list[float]:
        """Return the sums of numbers and scalar tensors over the processes, for all of which it
        waits for the device once."""
        tensors = {i: value for i, value in enumerate(values) if isinstance(value, Tensor)}
        if not self.distributed and not tensors:
            return list(values)
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        numbers = [0.0 if i in tensors else value for i, value in enumerate(values)]
        total = torch.tensor(numbers, dtype=dtype).to(self.device, non_blocking=True)
        for i, value in tensors.items():
            total[i] = value
        if self.distributed:
            torch.distributed.all_reduce(total)
        return total.tolist()

    def agree(self, *values: float) -> bool:
        """Return whether every process has the same values. Where they differ, at least one process
        gets False."""
        return self.sum(*values) == [self.world_size * value for value in values]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Context that all processes enter, at whose end all of them end if one has an error: it
        raises its own, the others end without a word."""
        error = None
        try:
            yield
        except (InputError, OSError) as found:
            error = found
        if self.sum(error is not None)[0]:
            self.close()
            if error:
                raise error
            sys.exit(2)

    def gather(self, share: Tensor, cuts: Sequence[int]) -> Tensor:
        """Return the joint batch, of which process r has samples cuts[r] to cuts[r + 1] first in
        its share."""
        if not self.distributed:
            return share
        sizes = [last - first for first, last in pairwise(cuts)]
        own = sizes[self.rank]
        padded = share.new_zeros(max(sizes), *share.shape[1:])
        padded[:own] = share[:own]
        parts = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def close(self) -> None:
        """End what the processes share."""
        if self.distributed and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


class Autocast(nn.Module):
    """Runs a model in a lower precision, if one is given. It does so inside the module that
    nn.DataParallel copies: its threads know whether autocast is on, but not in which precision."""

    def __init__(self, model: nn.Module, device_type: str, dtype: torch.dtype | None):
        super().__init__()
        self.model, self.device_type, self.dtype = model, device_type, dtype

    def forward(self, images: Tensor) -> list[Tensor]:
        with torch.autocast(self.device_type, self.dtype, enabled=self.dtype is not None):
            return self.model(images)
