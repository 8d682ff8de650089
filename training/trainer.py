"""The training loop, with checkpoints from which an interrupted run is resumed bit-exactly."""

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from corr_reg import mean_correlation
from dataloaders import Loader
from linearconv_sparse import schedule_pruning
from training import checkpoints, counting, report
from training.distributed import Group
from training.errors import NotFinite, Stopped, StopSignals, UsageError
from training.finite import FiniteCheck
from training.objective import REGULARISE_EVERY, loss_of, regularisers
from training.optimizers import FilterDecay, make_optimizer, set_learning_rate
from training.recipe import TrainingSettings

VERSIONS = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
AGREE_EVERY = 10  # steps after which several processes agree whether to save and to stop


@dataclass
class Progress:
    """The progress of a run, as saved in checkpoints: counters, sums, log. Times in seconds, accuracies in per cent."""

    epoch: int = 0  # finished epochs
    batch: int = 0  # finished batches of the current epoch
    step: int = 0  # finished steps of the whole run
    seconds: float = 0.0  # duration of the finished epochs
    train_seconds: float = 0.0  # duration of the current epoch's training
    images_per_second: float = 0.0  # in training, of the last finished epoch
    best: dict = field(default_factory=lambda: {"best_test_accuracy": -1.0, "best_epoch": 0})
    last: dict = field(default_factory=dict)  # loss and accuracies of the last finished epoch
    history: list[dict] = field(default_factory=list)  # a record per epoch
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros(()))  # sum over the current epoch, on the device
    correct: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.long))

    def to(self, device: torch.device) -> "Progress":
        """Move the sums to a device, so that no step waits for the host, and return self."""
        self.loss_sum, self.correct = self.loss_sum.to(device), self.correct.to(device)
        return self

    def clear_sums(self) -> None:
        """Set the sums to zero, in new tensors."""
        self.loss_sum, self.correct = torch.zeros_like(self.loss_sum), torch.zeros_like(self.correct)

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a step to the sums: its mean loss (), logits (B, classes) and labels (B,)."""
        self.batch += 1
        self.loss_sum += loss.detach() * len(labels)
        self.correct += (logits.detach().argmax(1) == labels).sum()

    def finish_epoch(self, results: dict, details: dict, evaluation_seconds: float, num_images: int) -> bool:
        """Finish an epoch, append its record to the history, and return True for the best epoch so far.

        Args:
            results: `train_loss`, `train_accuracy`, `test_accuracy`.
            details: further entries of the record.
            evaluation_seconds: duration of the evaluation, which is added to `train_seconds`.
            num_images: number of training images.
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
        """Return the entries of the report about the training."""
        return {**self.last, **self.best, **self._times()}

    def _times(self):
        return {"seconds": round(self.seconds, 3), "images_per_second": round(self.images_per_second, 1)}


class Trainer:
    """Train a network, and save a checkpoint after every epoch, within long epochs, and when a signal stops the run.

    Args:
        model: the network, which maps images (B, C, H, W) to logits (B, classes).
        loaders: training and test loader of :func:`dataloaders.dataloaders`.
        settings: the settings that decide the result; saved in checkpoints.
        folder: output folder of log and checkpoints.
        group: the processes that train the network together; default: this process, on the CPU.
        first_epoch, last_epoch: the epochs that this trainer trains; default: all epochs.
        progress: progress of the trainer for the epochs before `first_epoch`; default: a new run, which sets the seeds.
        teacher: network that computes the soft targets for distillation; not trained.
        record: from it the network can be built again without its script; saved in checkpoints.
        channels_last: memory format of parameters and feature maps.
        compile: run the network through torch.compile.
        sync_batch_norm: with several processes on GPUs, BatchNorm over the batches of all processes.
        save_every: minutes after which a checkpoint is saved within an epoch.
        tensorboard: also write TensorBoard event files.
    """

    def __init__(
        self,
        model: nn.Module,
        loaders: tuple[Loader, Loader],
        settings: TrainingSettings,
        folder: Path,
        group: Group | None = None,
        *,
        first_epoch: int = 0,
        last_epoch: int | None = None,
        progress: Progress | None = None,
        teacher: nn.Module | None = None,
        record: dict[str, object] | None = None,
        channels_last: bool = False,
        compile: bool = False,
        sync_batch_norm: bool = False,
        save_every: float = 10.0,
        tensorboard: bool = False,
    ) -> None:
        self.group = group or Group()
        self.device = self.group.device
        self.train_loader, self.test_loader = loaders
        self.settings, self.recipe, self.folder, self.save_every = settings, settings.recipe, folder, save_every
        self.last_epoch = self.recipe.epochs if last_epoch is None else last_epoch
        self.autocast = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=settings.amp)
        if progress is None:
            checkpoints.seed_random(settings.seed + self.group.rank)  # dropout differs between processes
        self.progress = progress or Progress().to(self.device)

        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(self.device, memory_format=memory_format)
        if sync_batch_norm:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.forward = self.group.wrap(self.model)
        if compile:
            self.forward = torch.compile(self.forward)
        self.teacher, self.record = teacher, record
        if teacher is not None:
            self.teacher = teacher.requires_grad_(False).eval().to(self.device, memory_format=memory_format)

        steps = len(self.train_loader)
        self.optimizer = make_optimizer(self.model, self.recipe)
        self.filter_decay = FilterDecay(self.model, self.recipe)
        self.finite = FiniteCheck(self.model, self.optimizer, self.device)
        self.average = None
        if self.recipe.average:
            decay = max(0.0, 1 - 1 / (self.recipe.average * steps))
            self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        schedule_pruning(self.model, self.optimizer, (self.last_epoch - first_epoch) * steps)

        self.events = report.event_writer(folder) if tensorboard and self.group.is_rank0 else None
        self.stop = StopSignals()
        self.saved_at = time.monotonic()
        self.order = None  # the training loader's state at the beginning of the current epoch

    def fit(self) -> Progress:
        """Train up to the last epoch, and return the progress.

        Raises:
            UsageError: if a resumed run has already been trained for more epochs.
            Stopped: after SIGINT or SIGTERM; a checkpoint has been saved.
            NotFinite: if a loss or gradient is not finite; earlier checkpoints are unchanged.
        """
        progress, epochs = self.progress, self.recipe.epochs
        if progress.epoch > epochs:
            raise UsageError(
                f"{self.folder} has been trained for {progress.epoch} epochs: give more --epochs to resume"
            )
        steps = len(self.train_loader)
        total, done = epochs * steps, progress.epoch * steps + progress.batch
        silent = None if self.group.is_rank0 else True  # None: tqdm is silent without a terminal
        with self.stop, tqdm(total=total, initial=done, disable=silent, unit="batch", dynamic_ncols=True) as bar:
            while progress.epoch < self.last_epoch:
                self._one_epoch(bar)
        if self.events:
            self.events.close()
        return progress

    def _one_epoch(self, bar):
        progress = self.progress
        train_loss, train_accuracy = self._train_epoch(bar)
        start, train_seconds = time.perf_counter(), progress.train_seconds
        results = {"train_loss": train_loss, "train_accuracy": train_accuracy, "test_accuracy": self.evaluate()}
        details = {"lr": self.lr, **counting.pruned_share(self.model)}
        correlation = mean_correlation(self.model)
        if correlation is not None:
            details["correlation"] = correlation
        evaluation_seconds = time.perf_counter() - start
        is_best = progress.finish_epoch(results, details, evaluation_seconds, self.train_loader.num_images)
        record = progress.history[-1]
        if self.group.is_rank0:
            checkpoints.append_log(self.folder, record)
        self._save(is_best)
        report.show_epoch(record, self.recipe.epochs, train_seconds, self.events)
        (asked,) = self.group.any(self.stop.asked)
        if asked and progress.epoch < self.recipe.epochs:
            raise Stopped(asked, f"epoch {progress.epoch} is saved: continue with --resume")

    def _train_epoch(self, bar):
        """Train for an epoch; return its mean loss, without regularisers, and its training accuracy in per cent."""
        progress = self.progress
        self.model.train()
        if progress.batch == 0:
            self.order = self.train_loader.state_dict()
            progress.clear_sums()
        start, shown = time.perf_counter() - progress.train_seconds, 0.0
        seen = progress.batch * self.recipe.batch_size
        for images, labels in self.train_loader.batches(progress.batch):
            self._train_step(images, labels)
            seen += len(labels)
            bar.update()
            if not bar.disable and time.monotonic() - shown > 1:
                shown = time.monotonic()
                loss_so_far, accuracy = progress.loss_sum.item() / seen, 100 * progress.correct.item() / seen
                bar.set_postfix(epoch=progress.epoch + 1, loss=f"{loss_so_far:.4f}", train=f"{accuracy:.2f} %")
            progress.train_seconds = time.perf_counter() - start
            if progress.batch < len(self.train_loader):
                self._save_where_due()
        if not self.finite.all_finite():
            self._give_up()
        sums = self.group.sum(progress.loss_sum, progress.correct, torch.tensor(seen, device=self.device))
        loss_sum, correct, seen = (total.item() for total in sums)
        return loss_sum / seen, 100 * correct / seen

    def _train_step(self, images, labels):
        with self.autocast:
            logits = self._training_forward(images)
            loss = loss_of(logits, images, labels, self.recipe, self.teacher)
        total = loss
        if self.group.size > 1:
            total = total * self.train_loader.share(self.progress.batch, len(labels))
        self.progress.step += 1
        if self.progress.step % REGULARISE_EVERY == 0:
            total = total + regularisers(self.model, self.recipe, self.group)
        set_learning_rate(self.optimizer, self.lr)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        if not self.finite.check(total):
            self._give_up()
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.filter_decay.before_step(self.lr)
        self.optimizer.step()
        if self.average:
            self.average.update_parameters(self.model)
        self.progress.add(loss, logits, labels)

    @property
    def lr(self) -> float:
        """The learning rate of the current step; between epochs, of the last step."""
        progress, steps = self.progress, len(self.train_loader)
        return self.recipe.lr_at(progress.epoch + (min(progress.batch, steps - 1) + 0.5) / steps)

    def _training_forward(self, images):
        try:
            return self.forward(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UsageError(f"BatchNorm cannot train on a batch of {len(images)}: give another --batch-size") from None

    @torch.inference_mode()
    def evaluate(self, flipped: bool = False) -> float:
        """Return the test accuracy in per cent; each process evaluates a part of the test set.

        Args:
            flipped: sum the logits of each image and its mirror image.
        """
        model = self.average or self.model
        model.eval()
        # DistributedDataParallel exchanges buffers in every forward pass. If the test set does not divide evenly, a
        # process with one more batch would wait forever. Several processes therefore use the unwrapped model.
        evaluated = self.forward if self.group.size == 1 and not self.average else model
        correct = torch.zeros((), dtype=torch.long, device=self.device)
        for images, labels in self.test_loader:
            with self.autocast:
                logits = evaluated(images) + evaluated(images.flip(-1)) if flipped else evaluated(images)
                correct += (logits.argmax(1) == labels).sum()
        (correct,) = self.group.sum(correct)
        return 100 * correct.item() / self.test_loader.num_images

    def evaluate_flipped(self) -> dict[str, float]:
        """Return `{"test_accuracy_with_flips": ...}` if training images are flipped, else `{}`."""
        return {"test_accuracy_with_flips": self.evaluate(flipped=True)} if self.train_loader.flip else {}

    def _give_up(self):
        where = f"epoch {self.progress.epoch + 1}, step {self.progress.step}, learning rate {self.lr:g}"
        layers = ", ".join(self.finite.bad_layers()) or "none by now"
        advice = "checkpoints are from before: continue with --resume --may-change lr --lr RATE"
        raise NotFinite(f"loss or gradient is not finite in {where}; layers concerned: {layers}; {advice}")

    def _save_where_due(self):
        """Save a checkpoint within an epoch if due or if the run is to stop; processes agree on this every 10 steps."""
        progress = self.progress
        if self.group.size > 1 and progress.step % AGREE_EVERY:
            return
        asked, late = self.group.any(self.stop.asked, time.monotonic() - self.saved_at >= 60 * self.save_every)
        if asked or late:
            path = self._save()
        if asked:
            where = f"{path} has epoch {progress.epoch + 1} up to batch {progress.batch} of {len(self.train_loader)}"
            raise Stopped(asked, f"{where}: continue with --resume")

    def _save(self, is_best=False):
        if not self.finite.all_finite():
            self._give_up()
        state = self._state()  # called in all processes
        path = checkpoints.save(self.folder, state, is_best) if self.group.is_rank0 else None
        self.saved_at = time.monotonic()
        return path

    def _state(self):
        loss_sum, correct = self.group.sum(self.progress.loss_sum, self.progress.correct)
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "train_loader": self.order if self.progress.batch else self.train_loader.state_dict(),
            "random": self.group.gather(checkpoints.random_state(self.device)),
            "settings": self.settings.state_dict(),
            "versions": VERSIONS,
        }
        if self.average:
            state["average"] = self.average.state_dict()
        if self.record:
            state["network"] = self.record
        return state | vars(self.progress) | {"loss_sum": loss_sum, "correct": correct}

    def resume(self, may_change: Sequence[str] = ()) -> None:
        """Load the newest undamaged checkpoint in the folder; see :meth:`load_state`.

        Raises:
            UsageError: if the folder has no usable checkpoint.
        """
        self.load_state(*self.group.broadcast_from_rank0(lambda: checkpoints.load_newest(self.folder)), may_change)

    def load_state(self, state: dict, path: Path, may_change: Sequence[str] = ()) -> None:
        """Resume from a checkpoint.

        Args:
            state, path: state and path of the checkpoint, as :func:`checkpoints.load_newest` returns them.
            may_change: settings that may differ from the checkpoint's settings.

        Raises:
            UsageError: if the checkpoint has another network, variant, data set or recipe.
        """
        changed = self.settings.check(state["settings"], path, may_change)
        if "batch_size" in changed and state["batch"]:
            raise UsageError(f"{path} is within an epoch, where the batch size cannot change: finish the epoch first")
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average:
                self.average.load_state_dict(state["average"])
            self.train_loader.load_state_dict(state["train_loader"])
            self.order = state["train_loader"]
        except (RuntimeError, ValueError, KeyError) as error:
            raise UsageError(f"{path} does not fit this network: {str(error).splitlines()[0]}") from None
        self.progress = progress = Progress(**{name: state[name] for name in vars(self.progress)}).to(self.device)
        if not self.group.is_rank0:  # rank 0 has the sums of all processes
            progress.clear_sums()
        if len(state["random"]) == self.group.size:
            checkpoints.restore_random_state(state["random"][self.group.rank], self.device)
        if self.group.is_rank0:
            checkpoints.write_log(self.folder, progress.history)
        within = f" and {progress.batch} batches of the next" if progress.batch else ""
        print(f"resuming after epoch {progress.epoch}{within} from {path}")
        if other := [f"{name} {was}" for name, was in state["versions"].items() if VERSIONS.get(name) != was]:
            print(f"it was written by {', '.join(other)}: the resumed run is not bit for bit the uninterrupted one")
