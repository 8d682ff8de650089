"""Checkpoints: the newest two and the best are kept, each written whole or not at all, a damaged one passed over."""

import io
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from training.errors import UsageError
from training.files import write_whole

KEPT = 2  # newest checkpoints that stay
PATTERN = "checkpoint-*.pt"
BEST = "best.pt"


def save(folder: Path, state: dict, best: bool = False) -> Path:
    """Write the checkpoint after `state["epoch"]` epochs and `state["batch"]` batches of the next one; return its path.

    All but the newest are dropped; with `best`, a copy of it is kept.

    Raises:
        OSError: where the folder or the disk does not take it; the checkpoints before it stay as they are.
    """
    within = f"-{state['batch']:06d}" if state["batch"] else ""
    path = folder / f"checkpoint-{state['epoch']:04d}{within}.pt"
    buffer = io.BytesIO()
    torch.save(state, buffer)  # in memory first: on a full disk torch itself would not say what is wrong
    for file_path in (folder / BEST, path) if best else (path,):  # killed in between, a run does that epoch again
        write_whole(file_path, lambda file: file.write(buffer.getbuffer()))
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()
    return path


def load_newest(folder: Path, warn: Callable[[str], object] = print) -> tuple[dict, Path]:
    """Return the newest state in `folder` that can be read, on the CPU, and its path; `warn` of damaged ones before it.

    Raises:
        UsageError: where there is none.
    """
    for path in _newest_first(folder):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state["epoch"], state["settings"], state["random"]  # noqa: B018  another program's file has none
            return state, path
        except Exception as error:  # a damaged zip or pickle fails in many ways
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            warn(f"{path} is damaged ({reason[:80]}): trying the one before")
    raise UsageError(f"no usable checkpoint in {folder}: leave out --resume to start from the beginning")


def holds_checkpoint(folder: Path) -> bool:
    """Return True for a folder with a checkpoint, damaged or not."""
    return any(True for _ in folder.glob(PATTERN))


def seed_random(seed: int) -> None:
    """Seed every random generator: python's, numpy's, torch's, and the devices'."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict:
    """Return the state of every random generator: python's, numpy's, torch's, and the device's."""
    kind, keys, *rest = np.random.get_state()
    on_gpu = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    numpy = [kind, torch.from_numpy(keys.astype(np.int64)), *rest]
    return {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state(), **on_gpu}


def restore_random_state(state: dict, device: torch.device) -> None:
    """Put every random generator where :func:`random_state` found it."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))  # earlier checkpoints have lists
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _newest_first(folder):
    """The checkpoints by the numbers in their names: epoch, or epoch and batch."""
    return sorted(folder.glob(PATTERN), key=lambda path: list(map(int, re.findall(r"\d+", path.stem))), reverse=True)
