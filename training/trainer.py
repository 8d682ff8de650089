"""The training loop, with checkpoints from which an interrupted run is resumed bit-exactly."""

import platform
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from corr_reg import mean_correlation
from dataloaders import Loader
from linearconv import LinearConv
from linearconv_convert.surgery import first_line
from linearconv_sparse import schedule_pruning
from training import checkpoints, counting
from training.distributed import Group
from training.errors import RunError, StopSignals, UsageError
from training.finite import FiniteCheck
from training.objective import REGULARISE_EVERY, loss_of, regularisers
from training.optimizers import FilterDecay, make_optimizer
from training.progress import Display, Progress
from training.recipe import Recipe, changed_settings

VERSIONS = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
AGREE_EVERY = 10  # steps after which several processes agree whether to save and to stop


class Trainer:
    """Train a network, and save a checkpoint after every epoch, within long epochs, and when a signal stops the run.

    Args:
        model: the network, which maps images (B, C, H, W) to logits (B, classes).
        loaders: training and test loader of :func:`dataloaders.dataloaders`.
        recipe: the training options.
        settings: all settings that decide the result, with "seed" and "amp"; saved in checkpoints.
        group: the processes that train the network together; default: this process, on the CPU.
        first_epoch, last_epoch: the epochs that this trainer trains; default: all epochs.
        progress: progress of the trainer for the epochs before `first_epoch`; default: a new run, which sets the seeds.
        teacher: network that computes the soft targets for distillation; not trained.
        record: from it the network can be built again without its script; saved in checkpoints.
        channels_last: memory format of the network and its images, where torch computes correctly with it.
        save_every: minutes after which a checkpoint is saved within an epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        loaders: tuple[Loader, Loader],
        recipe: Recipe,
        settings: dict[str, object],
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
    ) -> None:
        self.group = group or Group()
        self.device = self.group.device
        self.recipe, self.settings, self.folder, self.save_every = recipe, settings, folder, save_every
        self.last_epoch = recipe.epochs if last_epoch is None else last_epoch
        self.autocast = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=settings["amp"])
        if progress is None:
            checkpoints.seed_random(settings["seed"] + self.group.rank)  # dropout differs between processes
        self.progress = progress or Progress()

        channels_last = channels_last and _channels_last_is_safe(model, self.device)
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.train_loader, self.test_loader = loaders
        for loader in loaders:
            loader.memory_format = memory_format
        self.model = model.to(self.device, memory_format=memory_format)
        if sync_batch_norm:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.forward = self.group.wrap(self.model)
        if compile:
            self.forward = torch.compile(self.forward)
        self.teacher, self.record = teacher, record
        if teacher is not None:
            self.teacher = teacher.requires_grad_(False).eval().to(self.device, memory_format=memory_format)

        self.steps = len(self.train_loader)
        self.optimizer = make_optimizer(self.model, recipe)
        self.filter_decay = FilterDecay(self.model, recipe)
        self.finite = FiniteCheck(self.model, self.optimizer, self.device)
        self.average = None
        if recipe.average:
            decay = max(0.0, 1 - 1 / (recipe.average * self.steps))
            self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        schedule_pruning(self.model, self.optimizer, (self.last_epoch - first_epoch) * self.steps)

        self.stop = StopSignals()
        self.saved_at = time.monotonic()
        self.order = None  # the training loader's state at the beginning of the current epoch

    def fit(self) -> Progress:
        """Train up to the last epoch, and return the progress.

        Raises:
            RunError: after SIGINT or SIGTERM, when a checkpoint has been saved, or if a loss, gradient or weight is not
                finite.
        """
        progress, recipe = self.progress, self.recipe
        display = Display(progress, recipe.epochs, self.steps, recipe.batch_size, quiet=not self.group.is_rank0)
        with self.stop, display.bar:
            while progress.epoch < self.last_epoch:
                images = self._train_epoch(display)
                self._finish_epoch(images, display)
        return progress

    def _train_epoch(self, display):
        """Train for the rest of an epoch, and return the number of this process's images in the epoch."""
        progress = self.progress
        self.model.train()
        if progress.batch == 0:
            self.order = self.train_loader.state_dict()
            progress.begin_epoch(self.device)
        start = time.perf_counter() - progress.train_seconds
        for images, labels in self.train_loader.batches(progress.batch):
            self._train_step(images, labels)
            progress.train_seconds = time.perf_counter() - start
            display.show_step(progress)
            if progress.batch < self.steps:
                self._save_where_due()
        return (self.steps - 1) * self.recipe.batch_size + len(labels)

    def _train_step(self, images, labels):
        try:
            with self.autocast:
                logits = self.forward(images)
                loss = loss_of(logits, images, labels, self.recipe, self.teacher)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UsageError(f"BatchNorm cannot train on a batch of {len(images)}: give another --batch-size") from None
        total = loss
        if self.group.size > 1:
            total = total * self.train_loader.share(self.progress.batch, len(labels))
        self.progress.step += 1
        if self.progress.step % REGULARISE_EVERY == 0:
            total = total + regularisers(self.model, self.recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
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
        progress = self.progress
        return self.recipe.lr_at(progress.epoch + (min(progress.batch, self.steps - 1) + 0.5) / self.steps)

    def _finish_epoch(self, images, display):
        """Evaluate, save and print an epoch, in which this process has seen a number of training images."""
        progress = self.progress
        if not self.finite.may_save():
            self._give_up()
        start, train_seconds = time.perf_counter(), progress.train_seconds
        sums = self.group.gather((progress.loss_sum.item(), progress.correct.item(), images))
        loss_sum, correct, seen = map(sum, zip(*sums, strict=True))
        results = {"train_loss": loss_sum / seen, "train_accuracy": 100 * correct / seen}
        results["test_accuracy"] = self.evaluate()  # in per cent
        results |= {"lr": self.lr, **counting.pruned_share(self.model)}
        correlation = mean_correlation(self.model)
        if correlation is not None:
            results["correlation"] = correlation
        evaluation_seconds = time.perf_counter() - start
        is_best = progress.finish_epoch(results, evaluation_seconds, self.train_loader.num_images)
        self._save(is_best)
        display.show_epoch(progress, train_seconds)
        if progress.epoch < self.recipe.epochs:
            self._stop(max(self.group.gather(self.stop.asked)))

    @torch.inference_mode()
    def evaluate(self) -> float:
        """Return the test accuracy in per cent."""
        model = self.average or self.model
        model.eval()
        # DistributedDataParallel exchanges buffers in every forward pass. If the test set does not divide evenly, a
        # process with one more batch would wait forever. Several processes therefore use the unwrapped model.
        evaluated = self.forward if self.group.size == 1 and not self.average else model
        correct = torch.zeros((), dtype=torch.long, device=self.device)
        for images, labels in self.test_loader:
            with self.autocast:
                correct += (evaluated(images).argmax(1) == labels).sum()
        return 100 * sum(self.group.gather(correct.item())) / self.test_loader.num_images

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def _give_up(self):
        where = f"epoch {self.progress.epoch + 1}, step {self.progress.step}, learning rate {self.lr:g}"
        layers = ", ".join(self.finite.bad_layers()) or "none by now"
        advice = "nothing was saved: begin with a lower --lr"
        if checkpoints.holds_checkpoint(self.folder):
            advice = "checkpoints are from before: continue with --resume --may-change lr --lr RATE"
        raise RunError(f"a loss, gradient or weight is not finite in {where}; layers concerned: {layers}; {advice}", 3)

    def _save_where_due(self):
        """Save a checkpoint within an epoch if due or if the run is to stop; processes agree on this every 10 steps."""
        if self.group.size > 1 and self.progress.step % AGREE_EVERY:
            return
        late = time.monotonic() - self.saved_at >= 60 * self.save_every
        asked, late = map(max, zip(*self.group.gather((self.stop.asked, late)), strict=True))
        if asked or late:
            if not self.finite.may_save():
                self._give_up()
            self._save()
        self._stop(asked)

    def _stop(self, asked):
        """End the run if a signal has asked for it; the progress is saved."""
        if asked:
            name = signal.Signals(asked).name
            raise RunError(
                f"stopped by {name}; saved after {self.progress} in {self.folder}: continue with --resume", 128 + asked
            )

    def _save(self, is_best=False):
        state = {  # gathered in all processes
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "train_loader": self.order if self.progress.batch else self.train_loader.state_dict(),
            "random": self.group.gather(checkpoints.random_state(self.device)),
            "settings": self.settings,
            "versions": VERSIONS,
            **self.progress.state_dict(self.group),
        }
        if self.average:
            state["average"] = self.average.state_dict()
        if self.record:
            state["network"] = self.record
        if self.group.is_rank0:
            checkpoints.save(self.folder, state, is_best)
        self.saved_at = time.monotonic()

    def load_state(self, state: dict, path: Path, may_change: Sequence[str] = ()) -> None:
        """Resume from a checkpoint of :func:`checkpoints.load_newest`; settings in `may_change` may differ.

        Raises:
            UsageError: if the checkpoint has another network, variant, data set or recipe, or more epochs.
        """
        changed = changed_settings(self.settings, state["settings"], path, may_change)
        if state["epoch"] > self.recipe.epochs:
            raise UsageError(f"{path} has been trained for {state['epoch']} epochs: give more --epochs to resume")
        if "batch_size" in changed and state["batch"]:
            raise UsageError(f"{path} is within an epoch, where the batch size cannot change: finish the epoch first")
        try:
            if not 0 <= state["batch"] < self.steps:
                raise ValueError(f"batch {state['batch']} of {self.steps}")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average:
                self.average.load_state_dict(state["average"])
            self.train_loader.load_state_dict(state["train_loader"])
            self.order = state["train_loader"]
            self.progress = progress = Progress.load(state, self.group)
            if len(state["random"]) == self.group.size:
                checkpoints.restore_random_state(state["random"][self.group.rank], self.device)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} does not fit this run: {first_line(error)}") from None
        if self.group.is_rank0:
            checkpoints.write_log(self.folder, progress.history)
        print(f"resuming after {progress} from {path}")
        if other := [f"{name} {was}" for name, was in state["versions"].items() if VERSIONS.get(name) != was]:
            print(f"it was written by {', '.join(other)}: the resumed run is not bit for bit the uninterrupted one")


def _channels_last_is_safe(model, device):
    """Return False on a CPU for strided 1x1 convolutions with few channels: torch 2.11 to 2.15 corrupt memory."""
    layers = (layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, LinearConv)))
    strided = (layer for layer in layers if layer.kernel_size == (1, 1) and max(layer.stride) > 1)
    return device.type != "cpu" or all(layer.in_channels >= 16 for layer in strided)
