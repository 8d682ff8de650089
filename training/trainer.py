"""The training loop, and what it saves so that a run that ends before its time goes on as if it had not.

Cross-entropy, or a teacher's soft targets, with the optimizer and the learning rate of a recipe; every 10th batch adds
the regularisers of corr_reg.py.
"""

import platform
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from corr_reg import mean_correlation
from dataloaders import Loader
from linearconv import LinearConv
from linearconv_convert.weights import copy_weights
from linearconv_sparse import schedule_pruning
from training import checkpoints, counting, report, run_folder
from training.distributed import Group
from training.errors import NotFinite, Stopped, UsageError
from training.finite import FiniteCheck
from training.objective import REGULARISE_EVERY, loss_of, regularisers
from training.optimizers import FilterDecay, make_optimizer, set_learning_rate
from training.progress import Progress
from training.settings import TrainingSettings
from training.stopping import StopSignals

VERSIONS = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
AGREE_EVERY = 10  # steps after which processes ask one another whether to save and stop


class Trainer:
    """Train a network, saving after every epoch, within long ones, and when stopped what it takes to go on from there.

    Args:
        model: the network, of images (B, C, H, W) to logits (B, classes).
        loaders: training and test loader of :func:`dataloaders.dataloaders`.
        settings: what decides the result; kept in checkpoints.
        folder: takes log and checkpoints.
        group: the processes that train it together; this one alone, on the CPU, where left out.
        dense: the network with nn.Conv2d, for recipes that begin with it.
        teacher: gives the soft targets of recipes that distill; not trained.
        record: what the network is built from again, where that is not the script alone; kept in checkpoints.
        channels_last: memory format of parameters and feature maps.
        compile: run the network through torch.compile.
        sync_batch_norm: with several processes on GPUs, BatchNorm over the batch of all of them.
        save_every: minutes after which an epoch is saved within.
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
        dense: nn.Module | None = None,
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
        self.compile, self.sync_batch_norm = compile, sync_batch_norm
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.autocast = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=settings.amp)
        checkpoints.seed_random(settings.seed + self.group.rank)  # processes drop out apart
        begins_dense = self.recipe.dense_epochs and any(isinstance(module, LinearConv) for module in model.modules())
        self.to_follow = model if begins_dense else None  # the dense network, converted
        self._take(dense if begins_dense else model)
        self.teacher, self.record = teacher, record
        if teacher is not None:
            self.teacher = teacher.requires_grad_(False).eval().to(self.device, memory_format=self.memory_format)
        self.events = report.event_writer(folder) if tensorboard and self.group.is_first else None
        self.stop = StopSignals()
        self.saved_at = time.monotonic()
        self.progress = Progress().to(self.device)
        self.order = None  # the training loader's state at the beginning of the epoch in hand

    def _take(self, model):
        """Train this network from now on."""
        recipe, steps = self.recipe, len(self.train_loader)
        self.model = model.to(self.device, memory_format=self.memory_format)
        if self.sync_batch_norm:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.forward = self.group.wrap(self.model)
        if self.compile:
            self.forward = torch.compile(self.forward)
        self.optimizer = make_optimizer(self.model, recipe)
        self.filter_decay = FilterDecay(self.model, recipe)
        self.finite = FiniteCheck(self.model, self.optimizer, self.device)
        self.average = None
        if recipe.average:
            decay = max(0.0, 1 - 1 / (recipe.average * steps))
            self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        schedule_pruning(self.model, self.optimizer, (recipe.epochs - recipe.dense_epochs) * steps)

    def _convert(self):
        """Go on with the network that the dense one becomes."""
        model = self.to_follow.to(self.device)
        copy_weights(self.model, model)
        self.to_follow = None
        self._take(model)

    def fit(self) -> Progress:
        """Train up to the recipe's last epoch; return what has been reached.

        Raises:
            UsageError: where a resumed run has gone further already.
            Stopped: after SIGINT or SIGTERM; where the run stands has been saved.
            NotFinite: where a loss or gradient is not finite; checkpoints are as they were before.
        """
        progress, epochs = self.progress, self.recipe.epochs
        if progress.epoch > epochs:
            raise UsageError(f"{self.folder} has been trained for {progress.epoch} epochs: give more --epochs to go on")
        steps = len(self.train_loader)
        total, done = epochs * steps, progress.epoch * steps + progress.batch
        silent = None if self.group.is_first else True  # None: where there is no terminal
        with self.stop, tqdm(total=total, initial=done, disable=silent, unit="batch", dynamic_ncols=True) as bar:
            while progress.epoch < epochs:
                self._one_epoch(bar)
        if self.events:
            self.events.close()
        return progress

    def _one_epoch(self, bar):
        progress = self.progress
        if self.to_follow is not None and progress.epoch == self.recipe.dense_epochs:
            self._convert()
        train_loss, train_accuracy = self._train_epoch(bar)
        start, train_seconds = time.perf_counter(), progress.train_seconds
        results = {"train_loss": train_loss, "train_accuracy": train_accuracy, "test_accuracy": self.evaluate()}
        details = {"lr": self.lr, **counting.pruned_share(self.model), **self._correlation()}
        evaluation_seconds = time.perf_counter() - start
        is_best = progress.finish_epoch(results, details, evaluation_seconds, self.train_loader.num_images)
        record = progress.history[-1]
        if self.group.is_first:
            run_folder.append_log(self.folder, record)
        self._save(is_best)
        report.show_epoch(record, self.recipe.epochs, train_seconds, self.events)
        (asked,) = self.group.any(self.stop.asked)
        if asked and progress.epoch < self.recipe.epochs:
            raise Stopped(asked, f"epoch {progress.epoch} is saved, --resume goes on")

    def _correlation(self):
        mean = mean_correlation(self.model)
        return {} if mean is None else {"correlation": mean}

    def _train_epoch(self, bar):
        """Mean loss, without regularisers, and accuracy in per cent over the epoch, as training went."""
        progress = self.progress
        self.model.train()
        if progress.batch == 0:
            self.order = self.train_loader.state_dict()  # what the pass over the data is drawn from
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
        if self.recipe.reg_weight and self.progress.step % REGULARISE_EVERY == 0:
            total = total + self.recipe.reg_weight * regularisers(self.model, self.group)
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
        """The learning rate of the step in hand, or of the last one between epochs."""
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
        """Return the test accuracy in per cent over the whole test set, of which each process takes a part.

        Args:
            flipped: add up the logits of each image and of its mirror image.
        """
        model = self.average or self.model
        model.eval()
        # DistributedDataParallel lets its processes exchange buffers at every pass; of a test set that does not divide,
        # one process has a batch more and would wait for the others for ever. So several use the bare model.
        evaluated = self.forward if self.group.size == 1 and not self.average else model
        correct = torch.zeros((), dtype=torch.long, device=self.device)
        for images, labels in self.test_loader:
            with self.autocast:
                logits = evaluated(images) + evaluated(images.flip(-1)) if flipped else evaluated(images)
                correct += (logits.argmax(1) == labels).sum()
        (correct,) = self.group.sum(correct)
        return 100 * correct.item() / self.test_loader.num_images

    def evaluate_flipped(self) -> dict[str, float]:
        """Return `{"test_accuracy_with_flips": ...}` for images that are flipped in training; nothing for others."""
        return {"test_accuracy_with_flips": self.evaluate(flipped=True)} if self.train_loader.flip else {}

    def _give_up(self):
        where = f"epoch {self.progress.epoch + 1}, step {self.progress.step}, learning rate {self.lr:g}"
        layers = ", ".join(self.finite.bad_layers()) or "none by now"
        advice = "checkpoints are from before (--resume --may-change lr --lr RATE goes on)"
        raise NotFinite(f"loss or gradient is not finite in {where}; layers concerned: {layers}; {advice}")

    def _save_where_due(self):
        """Save within an epoch when it is time to, or when asked to stop; processes agree on it now and then."""
        progress = self.progress
        if self.group.size > 1 and progress.step % AGREE_EVERY:
            return
        asked, late = self.group.any(self.stop.asked, time.monotonic() - self.saved_at >= 60 * self.save_every)
        if asked or late:
            path = self._save()
        if asked:
            where = f"{path} has epoch {progress.epoch + 1} up to batch {progress.batch} of {len(self.train_loader)}"
            raise Stopped(asked, f"{where}, --resume goes on")

    def _save(self, is_best=False):
        if not self.finite.all_finite():
            self._give_up()
        state = self._state()  # of all processes
        path = checkpoints.save(self.folder, state, is_best) if self.group.is_first else None
        self.saved_at = time.monotonic()
        return path

    def _state(self):
        loss_sum, correct = self.group.sum(self.progress.loss_sum, self.progress.correct)
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **({"average": self.average.state_dict()} if self.average else {}),
            **({"network": self.record} if self.record else {}),
            "train_loader": self.order if self.progress.batch else self.train_loader.state_dict(),
            "random": self.group.gather(checkpoints.random_state(self.device)),
            "settings": self.settings.state_dict(),
            "versions": VERSIONS,
            **vars(self.progress),
            "loss_sum": loss_sum,
            "correct": correct,
        }

    def resume(self, may_change: Sequence[str] = ()) -> None:
        """Go on from the newest good checkpoint in the folder.

        Args:
            may_change: settings that may differ from the checkpoint's.

        Raises:
            UsageError: where there is none, or it is of another network, variant, data set or recipe.
        """
        state, path = self.group.of_first(lambda: checkpoints.load_newest(self.folder))
        changed = self.settings.check(state["settings"], path, may_change)
        if "batch_size" in changed and state["batch"]:
            raise UsageError(f"{path} stands within an epoch, where the batch size cannot change: finish it first")
        if (state["epoch"], state["batch"]) > (self.recipe.dense_epochs, 0) and self.to_follow is not None:
            self._take(self.to_follow)
            self.to_follow = None
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
        if not self.group.is_first:  # it has the others' share
            progress.clear_sums()
        if len(state["random"]) == self.group.size:
            checkpoints.restore_random_state(state["random"][self.group.rank], self.device)
        if self.group.is_first:
            run_folder.write_log(self.folder, progress.history)
        within = f" and {progress.batch} batches of the next" if progress.batch else ""
        print(f"resuming after epoch {progress.epoch}{within} from {path}")
        if other := [f"{name} {was}" for name, was in state["versions"].items() if VERSIONS.get(name) != was]:
            print(f"it was written by {', '.join(other)}: the run goes on, but not bit for bit as it would have")
