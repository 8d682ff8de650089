"""How much memory there is to keep a set of images in."""

import os
from contextlib import suppress
from pathlib import Path

import torch

SHARE = 0.5  # of what is free that a set may take: holding images out copies it, and a network has to live beside it


def physical_memory() -> float:
    """Return the machine's bytes; infinitely many where the system does not tell."""
    with suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return float("inf")


def available_memory() -> float:
    """Return the bytes that a process can have now; where the system does not tell, all that the machine has."""
    limits = [physical_memory()]
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    with suppress(OSError, StopIteration, ValueError):  # what a container or a job may have; "max" is no number
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        group = next(line.removeprefix("0::/") for line in lines if line.startswith("0::/"))
        limits.append(int(Path("/sys/fs/cgroup", group, "memory.max").read_text()))
    return min(limits)


def fits(needed: int, device: torch.device, copies: int = 1) -> bool:
    """Return True where images are to be kept in memory: where they take at most half of what is free.

    Args:
        needed: bytes of the images.
        device: where they are kept; on the way to a GPU they lie in the machine's memory too.
        copies: processes on this machine, each of which keeps all images.
    """
    if device.type == "cuda" and needed > SHARE * torch.cuda.mem_get_info(device)[0]:
        return False
    return copies * needed <= SHARE * available_memory()
