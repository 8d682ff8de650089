"""The progress of a run: its counters and sums, which checkpoints contain, and the lines and the bar that show it."""

import sys
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from training.distributed import Group

FIRST_LINE = 100  # steps
SILENCE = 60  # seconds after which a line is printed if there is no terminal


@dataclass
class Progress:
    """The progress of a run, as saved in checkpoints: counters, sums, log. Times in seconds, accuracies in per cent."""

    epoch: int = 0  # finished epochs
    batch: int = 0  # finished batches of the current epoch
    step: int = 0  # finished steps of the whole run
    train_seconds: float = 0.0  # duration of the current epoch's training
    history: list[dict] = field(default_factory=list)  # a record per epoch
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros(()))  # over the epoch and this process's images
    correct: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.long))

    def __str__(self) -> str:
        return f"epoch {self.epoch}" + (f" and {self.batch} batches of the next" if self.batch else "")

    def state_dict(self, group: Group) -> dict[str, object]:
        """Return the fields, with the sums of each process, (processes,); called in all processes."""
        sums = group.gather((self.loss_sum.cpu(), self.correct.cpu()))
        loss_sums, corrects = zip(*sums, strict=True)
        return vars(self) | {"loss_sum": torch.stack(loss_sums), "correct": torch.stack(corrects)}

    @classmethod
    def load(cls, state: dict[str, object], group: Group) -> "Progress":
        """Return the progress in a checkpoint. With another number of processes, rank 0 takes the sums of all."""
        progress = cls(**{name: state[name] for name in vars(cls())})
        for name in ("loss_sum", "correct"):
            sums = state[name].reshape(-1)  # older checkpoints hold the sum over the processes
            if len(sums) != group.size:
                sums = [sums.sum()] + [torch.zeros_like(sums[0])] * (group.size - 1)
            setattr(progress, name, sums[group.rank].to(group.device))
        return progress

    def begin_epoch(self, device: torch.device) -> None:
        """Set the sums to zero, on the device, so that no step waits for the host."""
        self.loss_sum = torch.zeros((), device=device)
        self.correct = torch.zeros((), dtype=torch.long, device=device)

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a step to the sums: its mean loss (), logits (B, classes) and labels (B,)."""
        self.batch += 1
        self.loss_sum += loss.detach() * len(labels)
        self.correct += (logits.detach().argmax(1) == labels).sum()

    def finish_epoch(self, results: dict, evaluation_seconds: float, num_images: int) -> bool:
        """Finish an epoch, append its results to the history, and return True for the best epoch so far."""
        before = self.history[-1]["seconds"] if self.history else 0.0
        is_best = all(results["test_accuracy"] > record["test_accuracy"] for record in self.history)
        self.epoch += 1
        times = {
            "seconds": round(before + self.train_seconds + evaluation_seconds, 3),
            "images_per_second": round(num_images / self.train_seconds, 1),
        }
        self.history.append({"epoch": self.epoch, **results, **times})
        self.batch, self.train_seconds = 0, 0.0
        return is_best

    def outcome(self) -> dict[str, object]:
        """Return the entries of the report about the training."""
        best = max(self.history, key=lambda record: record["test_accuracy"])
        names = ("train_loss", "train_accuracy", "test_accuracy", "seconds", "images_per_second")
        last = {name: self.history[-1][name] for name in names}
        return {**last, "best_test_accuracy": best["test_accuracy"], "best_epoch": best["epoch"]}


class Display:
    """Show progress: a bar on a terminal, else a line after 100 steps and once a minute; and a line for each epoch.

    `progress` is the progress at the beginning, of `epochs` epochs of `steps` steps. With `quiet` there is no bar.
    """

    def __init__(self, progress: Progress, epochs: int, steps: int, batch_size: int, quiet: bool = False) -> None:
        self.epochs, self.steps, self.batch_size = epochs, steps, batch_size
        self.first = self.done = progress.epoch * steps + progress.batch  # steps
        self.start = self.shown = time.monotonic()
        hidden = quiet or None  # None: without a terminal
        self.bar = tqdm(total=epochs * steps, initial=self.first, disable=hidden, unit="batch", dynamic_ncols=True)

    def show_step(self, progress: Progress) -> None:
        """Show a finished step."""
        self.bar.update()
        self.done += 1
        interval = SILENCE if self.bar.disable else 1
        if time.monotonic() - self.shown < interval and self.done != self.first + FIRST_LINE:
            return
        self.shown = time.monotonic()
        loss = f"{progress.loss_sum.item() / (progress.batch * self.batch_size):.4f}"
        if self.bar.disable:
            where = f"epoch {progress.epoch + 1}/{self.epochs}, batch {progress.batch}/{self.steps}"
            self._print(f"{where}: loss {loss}, {self._time_left()} left")
        else:
            self.bar.set_postfix(epoch=progress.epoch + 1, loss=loss)

    def show_epoch(self, progress: Progress, train_seconds: float) -> None:
        """Print the line of a finished epoch."""
        line = (
            "epoch {epoch:3d}/{epochs}  loss {train_loss:.4f}  train {train_accuracy:6.2f} %  "
            "test {test_accuracy:6.2f} %  lr {lr:.1e}  {train_seconds:.1f} s"
        ).format(**progress.history[-1], epochs=self.epochs, train_seconds=train_seconds)
        if progress.epoch < self.epochs:
            line += f", {self._time_left()} left"
        self._print(line)

    def _print(self, line):
        self.shown = time.monotonic()
        tqdm.write(line, file=sys.stdout)  # above the bar
        sys.stdout.flush()

    def _time_left(self):
        """The time for the remaining steps at the mean speed since the beginning, evaluations included."""
        seconds_per_step = (time.monotonic() - self.start) / (self.done - self.first)
        return tqdm.format_interval(seconds_per_step * (self.epochs * self.steps - self.done))
