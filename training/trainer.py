"""The training loop, and what it saves so that a run that ends before its time goes on as if it had not.

Adam and cross-entropy; every 10th batch adds the regularisers of corr_reg.py.
"""

import platform
import sys
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from corr_reg import corr_loss, l1_loss
from linearconv import LinearConv
from linearconv_sparse import LinearConvSparse, schedule_pruning
from training import checkpoints, distributed
from training.options import UsageError
from training.stopping import FiniteCheck, NotFinite, Stopped, StopSignals

REGULARISE_EVERY = 10  # batches
AGREE_EVERY = 10  # steps after which processes ask one another whether to save and stop
LR_DROP = 0.1  # factor of the learning rate after a milestone
PROGRESS = ("epoch", "batch", "step", "seconds", "train_seconds", "images_per_second", "best", "last", "history",
            "loss_sum", "correct")  # fmt: skip


class Trainer:
    """Train a network, saving after every epoch, within long ones, and when stopped what it takes to go on from there.

    Args:
        model (nn.Module): the network.
        loaders (tuple): training and test loader of :func:`dataloaders.dataloaders`.
        options (Namespace): the command line's, the recipe's values filled in.
        folder (Path): takes log and checkpoints.
        dataset (str), classes (int): kept in checkpoints, so that they are resumed on the same data only.
        group (distributed.Group): the processes that train it together; this one alone where left out.
    """

    def __init__(self, model, loaders, options, folder, dataset, classes, group=None):
        self.group = group or distributed.Group()
        self.train_loader, self.test_loader = loaders
        self.device = torch.device(options.device)
        self.options, self.folder = options, folder
        memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
        self.model = model.to(self.device, memory_format=memory_format)
        if options.sync_batch_norm:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.forward = self.group.wrap(self.model)
        if options.compile:
            self.forward = torch.compile(self.forward)
        torch.manual_seed(options.seed + self.group.rank)  # processes drop out apart
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=options.lr, fused=True)
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, options.milestones, gamma=LR_DROP)
        self.finite = FiniteCheck(self.model, self.optimizer, self.device)
        schedule_pruning(self.model, options.epochs * len(self.train_loader))
        self.recipe = {
            name: getattr(options, name) for name in ("epochs", "batch_size", "lr", "milestones", "reg_weight")
        }
        asked = ("network", "type", "rank", "sparsity", "alpha", "pruning", "width", "seed", "amp")
        self.settings = {name: getattr(options, name) for name in asked}
        self.settings |= {"dataset": dataset, "num_classes": classes, "processes": self.group.size, **self.recipe}
        del self.settings["epochs"]  # a run may be made longer
        self.events = None  # of TensorBoard
        self.stop = StopSignals()
        self.saved_at = time.monotonic()
        # what a checkpoint holds besides the states of model, optimizer and so on
        self.epoch = 0  # finished ones
        self.batch = 0  # finished ones of the epoch in hand
        self.step = 0
        self.seconds = 0.0
        self.train_seconds = 0.0  # of the epoch in hand
        self.images_per_second = 0.0
        self.best = {"best_test_accuracy": -1.0, "best_epoch": 0}
        self.last = {}
        self.history = []  # the log
        self.order = None  # the training loader's state at the beginning of the epoch in hand
        self.loss_sum = torch.zeros((), device=self.device)  # of the epoch in hand, kept on the device
        self.correct = torch.zeros((), dtype=torch.long, device=self.device)

    def write_events_to(self, folder):
        """Write TensorBoard event files to a folder.

        Raises:
            UsageError: where the package tensorboard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UsageError("--tensorboard needs the package tensorboard: pip install tensorboard") from None
        self.events = SummaryWriter(folder)

    def fit(self):
        """Train up to `options.epochs`; returns the report's results.

        Raises:
            UsageError: where a resumed run has gone further already.
            Stopped: after SIGINT or SIGTERM; where the run stands has been saved.
            NotFinite: where a loss or gradient is not finite; checkpoints are as they were before.
        """
        if self.epoch > self.options.epochs:
            raise UsageError(f"{self.folder} has been trained for {self.epoch} epochs: give more --epochs to go on")
        steps = len(self.train_loader)
        total, done = self.options.epochs * steps, self.epoch * steps + self.batch
        silent = None if self.group.is_first else True  # None: where there is no terminal
        with self.stop, tqdm(total=total, initial=done, disable=silent, unit="batch", dynamic_ncols=True) as bar:
            while self.epoch < self.options.epochs:
                self._one_epoch(bar)
        if self.events:
            self.events.close()
        return {
            **self.last,
            **self.best,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images_per_second, 1),
        }

    def _one_epoch(self, bar):
        learning_rate = self.optimizer.param_groups[0]["lr"]
        train_loss, train_accuracy = self._train_epoch(bar)
        start = time.perf_counter()
        test_accuracy = self.evaluate()
        self.scheduler.step()
        self.epoch += 1
        self.seconds += self.train_seconds + time.perf_counter() - start
        self.images_per_second = self.train_loader.num_images / self.train_seconds
        self.last = {"train_loss": train_loss, "train_accuracy": train_accuracy, "test_accuracy": test_accuracy}
        is_best = test_accuracy > self.best["best_test_accuracy"]
        if is_best:
            self.best = {"best_test_accuracy": test_accuracy, "best_epoch": self.epoch}
        self.history.append({
            "epoch": self.epoch,
            **self.last,
            "lr": learning_rate,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images_per_second, 1),
            **self._sparsity(),
        })  # fmt: skip
        train_seconds = self.train_seconds
        self.batch, self.train_seconds = 0, 0.0
        if self.group.is_first:
            checkpoints.append_log(self.folder, self.history[-1])
        self._save(is_best)
        if self.events:
            for name, value in self.history[-1].items():
                self.events.add_scalar(name, value, self.epoch)
            self.events.flush()
        tqdm.write(
            f"epoch {self.epoch:3d}/{self.options.epochs}  loss {train_loss:.4f}  train {train_accuracy:6.2f} %  "
            f"test {test_accuracy:6.2f} %  lr {learning_rate:.1e}  {train_seconds:.1f} s",
            file=sys.stdout,
        )
        sys.stdout.flush()
        (asked,) = self.group.any(self.stop.asked, device=self.device)
        if asked and self.epoch < self.options.epochs:
            raise Stopped(asked, f"epoch {self.epoch} is saved, --resume goes on")

    def _train_epoch(self, bar):
        """Mean cross-entropy and accuracy in per cent over the epoch, as training went."""
        self.model.train()
        if self.batch == 0:
            self.order = self.train_loader.state_dict()  # what the pass over the data is drawn from
            self.loss_sum.zero_()
            self.correct.zero_()
        batches, shown, start = len(self.train_loader), 0.0, time.perf_counter() - self.train_seconds
        seen = self.batch * self.options.batch_size
        for images, labels in self.train_loader.batches(self.batch):
            self._train_step(images, labels)
            self.batch += 1
            seen += len(labels)
            bar.update()
            if not bar.disable and time.monotonic() - shown > 1:
                shown = time.monotonic()
                loss_so_far, accuracy = self.loss_sum.item() / seen, 100 * self.correct.item() / seen
                bar.set_postfix(epoch=self.epoch + 1, loss=f"{loss_so_far:.4f}", train=f"{accuracy:.2f} %")
            self.train_seconds = time.perf_counter() - start
            if self.batch < batches:
                self._save_where_due(batches)
        if not self.finite.all_well():
            self._give_up()
        seen = torch.tensor(seen, device=self.device)
        loss_sum, correct, seen = (total.item() for total in self.group.sum(self.loss_sum, self.correct, seen))
        return loss_sum / seen, 100 * correct / seen

    def _train_step(self, images, labels):
        with self._autocast():
            logits = self._training_forward(images)
            loss = F.cross_entropy(logits, labels)
        total = loss if self.group.size == 1 else loss * self.train_loader.share(self.batch, len(labels))
        self.step += 1
        if self.options.reg_weight and self.step % REGULARISE_EVERY == 0:
            total = total + self.options.reg_weight * self._regularisers()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        if not self.finite.look(total):
            self._give_up()
        self.optimizer.step()
        self.loss_sum += loss.detach() * len(labels)  # summed on the device: no step waits for the host
        self.correct += (logits.detach().argmax(1) == labels).sum()

    def _regularisers(self):
        """The regularisers of the whole network; processes share the layers among them, as gradients are averaged."""
        if self.group.size == 1:
            return corr_loss(self.model) + l1_loss(self.model)
        layers = [layer for layer in self.model.modules() if isinstance(layer, LinearConv)]
        mine = layers[self.group.rank :: self.group.size]
        return self.group.size * sum((corr_loss(layer) + l1_loss(layer) for layer in mine), start=0.0)

    def _give_up(self):
        layers = ", ".join(self.finite.layers()) or "none by now"
        rate = self.optimizer.param_groups[0]["lr"]
        raise NotFinite(
            f"loss or gradient is not finite in epoch {self.epoch + 1}, step {self.step}, learning rate {rate:g}; "
            f"layers concerned: {layers}; checkpoints are from before (--resume --may-change lr --lr RATE goes on)"
        )

    def _save_where_due(self, batches):
        """Save within an epoch when it is time to, or when asked to stop; processes agree on it now and then."""
        if self.group.size > 1 and self.step % AGREE_EVERY:
            return
        late = time.monotonic() - self.saved_at >= 60 * self.options.save_every
        asked, late = self.group.any(self.stop.asked, late, device=self.device)
        if asked or late:
            path = self._save()
        if asked:
            where = f"{path} has epoch {self.epoch + 1} up to batch {self.batch} of {batches}"
            raise Stopped(asked, f"{where}, --resume goes on")

    def _save(self, is_best=False):
        if not self.finite.all_well():
            self._give_up()
        state = self._state()  # of all processes
        path = checkpoints.save(self.folder, state, is_best) if self.group.is_first else None
        self.saved_at = time.monotonic()
        return path

    def _training_forward(self, images):
        try:
            return self.forward(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UsageError(f"BatchNorm cannot train on a batch of {len(images)}: give another --batch-size") from None

    @torch.inference_mode()
    def evaluate(self):
        """Test accuracy in per cent: correct / total over the whole test set, of which each process takes a part."""
        self.model.eval()
        evaluated = self.forward if self.group.size == 1 else self.model
        correct = torch.zeros((), dtype=torch.long, device=self.device)
        for images, labels in self.test_loader:
            with self._autocast():
                correct += (evaluated(images).argmax(1) == labels).sum()
        (correct,) = self.group.sum(correct)
        return 100 * correct.item() / self.test_loader.num_images

    def _autocast(self):
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.options.amp)

    def _sparsity(self):
        """What the masks of sparse layers prune now, as a share of all coefficients; nothing for other networks."""
        masks = [layer.mask for layer in self.model.modules() if isinstance(layer, LinearConvSparse)]
        total = sum(mask.numel() for mask in masks)
        return {"pruned": sum((mask == 0).sum().item() for mask in masks) / total} if total else {}

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def _state(self):
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "train_loader": self.order if self.batch else self.train_loader.state_dict(),
            "random": self.group.gather(checkpoints.random_state(self.device)),
            "settings": self.settings,
            "versions": _versions(),
            **{name: getattr(self, name) for name in PROGRESS},
            **dict(zip(("loss_sum", "correct"), self.group.sum(self.loss_sum, self.correct), strict=True)),
        }

    def was_started_again(self):
        """True where torchrun has started the run again after it had saved something."""
        return self.group.of_first(lambda: self.group.restarts > 0 and checkpoints.holds_checkpoint(self.folder))

    def resume(self):
        """Go on from the newest good checkpoint in the folder.

        Raises:
            UsageError: where there is none, or it is of another network, variant, data set or recipe.
        """
        state, path = self.group.of_first(lambda: checkpoints.load_newest(self.folder))
        changed = checkpoints.check_settings(state["settings"], self.settings, path, self.options.may_change)
        if "batch_size" in changed and state["batch"]:
            raise UsageError(f"{path} stands within an epoch, where the batch size cannot change: finish it first")
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if not {"lr", "milestones"} & set(changed):
                self.scheduler.load_state_dict(state["scheduler"])
            self.train_loader.load_state_dict(state["train_loader"])
            self.order = state["train_loader"]
        except (RuntimeError, ValueError, KeyError) as error:
            raise UsageError(f"{path} does not fit this network: {str(error).splitlines()[0]}") from None
        for name in PROGRESS:
            setattr(self, name, state[name])
        self.loss_sum, self.correct = self.loss_sum.to(self.device), self.correct.to(self.device)
        if not self.group.is_first:  # it has the others' share
            self.loss_sum, self.correct = torch.zeros_like(self.loss_sum), torch.zeros_like(self.correct)
        if {"lr", "milestones"} & set(changed):
            self._set_learning_rate()
        if len(state["random"]) == self.group.size:
            checkpoints.restore_random_state(state["random"][self.group.rank], self.device)
        if self.group.is_first:
            checkpoints.write_log(self.folder, self.history)
        within = f" and {self.batch} batches of the next" if self.batch else ""
        print(f"resuming after epoch {self.epoch}{within} from {path}")
        different = [f"{name} {was}" for name, was in state["versions"].items() if _versions().get(name) != was]
        if different:
            print(f"it was written by {', '.join(different)}: the run goes on, but not bit for bit as it would have")

    def _set_learning_rate(self):
        """Put the recipe's learning rate and milestones in the place of the checkpoint's."""
        rate = self.options.lr * LR_DROP ** sum(milestone <= self.epoch for milestone in self.options.milestones)
        for group in self.optimizer.param_groups:
            group["lr"], group["initial_lr"] = rate, self.options.lr
        self.scheduler.last_epoch = self.epoch
        self.scheduler.base_lrs = [self.options.lr]


def _versions():
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
