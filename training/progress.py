"""How far a run is: what a checkpoint keeps of it besides the states of model, optimizer and random generators."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Progress:
    """Counters, sums and the log of a run. Times are in seconds, accuracies in per cent."""

    epoch: int = 0  # finished ones
    batch: int = 0  # finished ones of the epoch in hand
    step: int = 0  # of the whole run
    seconds: float = 0.0  # of finished epochs
    train_seconds: float = 0.0  # of the epoch in hand
    images_per_second: float = 0.0  # in training, of the last finished epoch
    best: dict = field(default_factory=lambda: {"best_test_accuracy": -1.0, "best_epoch": 0})
    last: dict = field(default_factory=dict)  # loss and accuracies of the last finished epoch
    history: list[dict] = field(default_factory=list)  # the log, a record per epoch
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros(()))  # of the epoch in hand, on the device
    correct: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.long))

    def to(self, device: torch.device) -> "Progress":
        """Move the sums to a device, so that no step waits for the host; return self."""
        self.loss_sum, self.correct = self.loss_sum.to(device), self.correct.to(device)
        return self

    def clear_sums(self) -> None:
        """Forget what was summed, in tensors of their own."""
        self.loss_sum, self.correct = torch.zeros_like(self.loss_sum), torch.zeros_like(self.correct)

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count a step: its mean loss (), logits (B, classes) and labels (B,)."""
        self.batch += 1
        self.loss_sum += loss.detach() * len(labels)
        self.correct += (logits.detach().argmax(1) == labels).sum()

    def finish_epoch(self, results: dict, details: dict, evaluation_seconds: float, num_images: int) -> bool:
        """Count an epoch, append its record to the history, and return True where it is the best so far.

        Args:
            results: `train_loss`, `train_accuracy`, `test_accuracy`.
            details: what else the record is to say.
            evaluation_seconds: beside `train_seconds`.
            num_images: that it has trained on.
        """
        self.epoch += 1
        self.seconds += self.train_seconds + evaluation_seconds
        self.images_per_second = num_images / self.train_seconds
        self.last = results
        is_best = results["test_accuracy"] > self.best["best_test_accuracy"]
        if is_best:
            self.best = {"best_test_accuracy": results["test_accuracy"], "best_epoch": self.epoch}
        self.history.append({"epoch": self.epoch, **results, **self._times(), **details})
        self.batch, self.train_seconds = 0, 0.0
        return is_best

    def outcome(self) -> dict[str, object]:
        """Return what the report says of the training."""
        return {**self.last, **self.best, **self._times()}

    def _times(self):
        return {"seconds": round(self.seconds, 3), "images_per_second": round(self.images_per_second, 1)}
