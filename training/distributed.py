"""Several processes that train one network, as torchrun starts them: one for each GPU, or for parts of a CPU.

    torchrun --nproc-per-node 2 models/vgg_xcnn.py -t rank -r 1 --batch-size 25

Each process takes its part of every batch; gradients are averaged (DistributedDataParallel), so that N processes of
batch B do what one process of batch N B does.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor

PATIENCE = timedelta(minutes=10)  # that processes have with one another, and the others while the first one downloads


class Group:
    """The processes of a run, or one alone.

    Args:
        rank, size: which process this is, of how many.
        device: of this process.
        restarts: how often torchrun has started this run again.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: str = "cpu", restarts: int = 0) -> None:
        self.rank, self.size, self.restarts = rank, size, restarts
        self.device = torch.device(device)

    @property
    def is_first(self) -> bool:
        """True in the one process that writes files and speaks."""
        return self.rank == 0

    def sum(self, *tensors: Tensor) -> Sequence[Tensor]:
        """Return the sums of tensors over all processes."""
        if self.size == 1:
            return tensors
        sums = [tensor.detach().clone() for tensor in tensors]
        for tensor in sums:
            dist.all_reduce(tensor)
        return sums

    def any(self, *flags: int | None) -> Sequence[int | None]:
        """Return for each flag the largest of all processes'; None counts as 0."""
        if self.size == 1:
            return flags
        largest = torch.tensor([int(flag or 0) for flag in flags], device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return largest.tolist()

    def gather(self, thing: Any) -> list:
        """Return a list of every process's `thing`."""
        things = [thing] * self.size
        if self.size > 1:
            dist.all_gather_object(things, thing)
        return things

    def of_first(self, make: Callable[[], Any]) -> Any:
        """Return in all processes what `make()` returns in the first one."""
        things = [make() if self.is_first else None]
        if self.size > 1:
            dist.broadcast_object_list(things, src=0)
        return things[0]

    def first_before_others(self, make: Callable[[], Any]) -> Any:
        """Return `make()`, called in the first process before the others: what it downloads, they find."""
        if self.size == 1:
            return make()
        made = make() if self.is_first else None
        dist.barrier()
        return made if self.is_first else make()

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model with its gradients averaged over the processes."""
        if self.size == 1:
            return model
        for parameter in model.parameters():
            if parameter.numel() == 0:  # coefficients of layers without secondary filters never get a gradient
                parameter.requires_grad_(False)
        own_gpu = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=own_gpu)


@contextmanager
def join(device: str) -> Iterator[Group]:
    """Join the processes that torchrun has started, for as long as the context lasts, and yield this one's group.

    Args:
        device: that the command line asks for; of several processes each gets its own GPU.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group(device=device)
        return
    # DistributedDataParallel imports this module, whose functions keep what is the world group by then as a default:
    # its threads would outlive the group, and abort the process where they meet the interpreter's end.
    import torch.distributed.nn  # noqa: F401

    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    store, rank, _ = next(dist.rendezvous("env://", timeout=PATIENCE))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":  # one machine; on several each counts its restarts by itself
        # Processes started again must not find in torchrun's store where those before them could be reached.
        store = dist.PrefixStore(f"start_{restarts}", store)
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield Group(rank, size, device, restarts)
    finally:
        dist.destroy_process_group()
