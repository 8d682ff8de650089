"""Several processes that train one network, started by torchrun: one for each GPU, or for parts of a CPU.

    torchrun --nproc-per-node 2 models/vgg_xcnn.py -t rank -r 1 --batch-size 25

Each process takes its part of every batch, and gradients are averaged (DistributedDataParallel). N processes with
batch size B therefore train like one process with batch size N B.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn

from images.info import one_line
from training.errors import UsageError

TIMEOUT = timedelta(minutes=10)  # for communication; this includes the time in which rank 0 downloads data


class Group:
    """The processes of a run, with rank and device of this process; by default, a single process on the CPU."""

    def __init__(self, rank: int = 0, size: int = 1, device: str = "cpu", restarts: int = 0) -> None:
        self.rank, self.size, self.restarts = rank, size, restarts
        self.device = torch.device(device)

    @property
    def is_rank0(self) -> bool:
        """True in the process that writes files and prints."""
        return self.rank == 0

    def gather(self, thing: Any) -> list:
        """Return the `thing` of each process, in a list sorted by rank."""
        things = [thing] * self.size
        if self.size > 1:
            dist.all_gather_object(things, thing)
        return things

    def broadcast_from_rank0(self, make: Callable[[], Any]) -> Any:
        """Call `make()` on rank 0 and return its result in all processes, or end all processes if it fails."""
        if self.size == 1:
            return make()
        outcome = [None, None]
        if self.is_rank0:
            try:
                outcome[0] = make()
            except Exception as error:
                dist.broadcast_object_list([None, getattr(error, "code", 2)], src=0)
                raise
        dist.broadcast_object_list(outcome, src=0)
        made, code = outcome
        if code is not None:
            raise SystemExit(code)  # only rank 0 prints the error
        return made

    def on_rank0_first(self, make: Callable[[], Any]) -> Any:
        """Return `make()`. Rank 0 calls it first, so that the other processes find the files that it downloads."""
        made = []
        self.broadcast_from_rank0(lambda: made.append(make()))
        return made[0] if self.is_rank0 else make()

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model wrapped so that gradients are averaged over the processes."""
        if self.size == 1:
            return model
        for parameter in model.parameters():
            if parameter.numel() == 0:  # coefficients of layers without secondary filters never get a gradient
                parameter.requires_grad_(False)
        own_gpu = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=own_gpu)


@contextmanager
def join(device: str) -> Iterator[Group]:
    """Join the processes that torchrun has started while the context lasts, and yield their group.

    With "cuda", each of several processes gets its own GPU. Processes that do not find each other raise a UsageError.
    """
    try:
        group = _joined(device)
    except (ValueError, KeyError, RuntimeError) as error:
        reason = f"the processes of WORLD_SIZE={os.environ['WORLD_SIZE']} cannot be joined ({one_line(error)})"
        raise UsageError(f"{reason}: start them with torchrun, or unset WORLD_SIZE") from None
    try:
        yield group
    finally:
        if group.size > 1:
            dist.destroy_process_group()


def _joined(device):
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Group(device=device)
    # DistributedDataParallel imports this module, whose functions store the current world group as a default argument.
    # Imported later, it would keep the group's threads alive, and they would abort the process at interpreter exit.
    import torch.distributed.nn  # noqa: F401

    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    store, rank, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":  # one machine; each of several machines counts its own restarts
        # Restarted processes must not find the addresses of their predecessors in torchrun's store.
        store = dist.PrefixStore(f"start_{restarts}", store)
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    return Group(rank, size, device, restarts)
