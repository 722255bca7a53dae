"""Train the zoo's networks with QCFS: resumable to the bit, on one processor, several, or GPUs.

Everything random in a step comes from the seed and the numbers of the epoch, the batch and the process alone. So there
are no generator states to save, and a run that was killed anywhere goes on as if nothing had happened.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bridge._util.files import replacing
from bridge.errors import BridgeError, InputError
from bridge.passes.calibration.losses import divergence
from bridge.prepare.checkpoints import load_checkpoint
from bridge.prepare.thresholds import fit_thresholds
from bridge.zoo.data import Dataset, dataset
from bridge.zoo.models import activations, require_safetensors, save_weights
from bridge.zoo.recipes import PAPER, Recipe, learning_rate, recipe_named
from bridge.zoo.training.augment import standard
from bridge.zoo.training.evaluation import accuracy
from bridge.zoo.training.plan import Augment, Compile, Metrics, Plan
from bridge.zoo.training.precision import qcfs_in_float32, resolved_precision
from bridge.zoo.training.preparation import check_batch, compiles, layers_checksum, memory_format, network_to_train
from bridge.zoo.training.processes import processes
from bridge.zoo.training.progress_bar import ProgressBar
from bridge.zoo.training.random_numbers import derived, own_random_numbers
from bridge.zoo.training.run_files import (
    CARD,
    CHECKPOINT,
    METRICS,
    WEIGHTS,
    damaged,
    model_card,
    read_checkpoint,
    runs_of,
    weights_metadata,
)
from bridge.zoo.training.spiking_steps import LARGEST_GRADIENT, SpikingSteps

LOG = logging.getLogger(__name__)

FIT_IMAGES = 1024
"""Training images that λ is fitted to after ReLU epochs."""


@dataclass(frozen=True)
class Result:
    """A trained network.

    Attributes:
        model: in eval mode.
        accuracy: of the last epoch's network on the test images, 0…1. Nothing was chosen by it.
        metrics: a dictionary an epoch, as in the file `METRICS`.
        weights: the safetensors file, which `load_weights` reads.
        card: the model card beside it.
    """

    model: nn.Module
    accuracy: float
    metrics: Metrics
    weights: Path
    card: Path


def run(
    model: str,
    data: str,
    out: Path,
    *,
    recipe: str = "paper",
    changes: Iterable[str] = (),
    folder: Path | None = None,
    **options: Any,
) -> Result:
    """`train` with everything by name, and a log line an epoch on standard error: what a command line needs.

    Args:
        model: one of `MODELS`.
        data: a name that `bridge.zoo.data.dataset` knows.
        out: the folder to write.
        recipe: ``"paper"`` or ``"short"``.
        changes: to the recipe, such as ``"epochs=30"``.
        folder: where the data are.
        options: of `train`.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    LOG.setLevel(logging.INFO)
    return train(model, dataset(data, folder), recipe_named(recipe, changes), out, **options)


def train(
    model: str | nn.Module,
    dataset: Dataset,
    recipe: Recipe = PAPER,
    out: str | Path = "trained",
    *,
    seed: int = 0,
    augment: Augment | None = None,
    resume: bool = True,
    device: str | torch.device | None = None,
    compile: Compile = "auto",
    evaluate_every: int = 1,
    held_out: int = 0,
    checkpoint_minutes: float = 5.0,
    initial: str | Path | None = None,
) -> Result:
    """Train `model` on `dataset` and write weights, model card and metrics into the folder `out`.

    Killed at any moment and called again with the same arguments, it goes on from its checkpoint and ends with the
    same weights as if it had run through (on CPU, with the same number of threads and the same torch). Under torchrun
    each step's batch is shared out to the processes, whose gradients are averaged; the first one writes.

    Nothing is chosen by the test images: the result is the network after the last epoch.

    Args:
        model: one of `MODELS`, or a module with QCFS layers, which is trained in place; then `recipe.levels` must be
            theirs, and `recipe.threshold` is not used.
        dataset: images and labels.
        recipe: how to train.
        out: the folder to write; made if missing.
        seed: of the first weights, the order of the images, the augmentation and dropout.
        augment: by default `bridge.zoo.training.augment.standard`.
        resume: go on from the checkpoint in `out`, if there is one; False starts anew and overwrites it.
        device: by default a GPU if there is one.
        compile: use torch.compile in steps that do not spike; ``"auto"`` does in runs of at least
            `preparation.COMPILE_FROM` of them, where there is a compiler. Accuracy is always measured uncompiled and in
            float32, as the network will be converted.
        evaluate_every: epochs between two measurements of accuracy; the last epoch's is always measured.
        held_out: keep so many training images out of training and report accuracy on them, not on the test images,
            until training is over.
        checkpoint_minutes: between two checkpoints within an epoch; there is one after every epoch anyway.
        initial: a weights file to begin with, λ included, in the place of random weights: fine-tuning.

    Raises:
        InputError: an argument is out of range; the images or the weights `initial` do not fit `model`; `out` cannot be
            written, or its checkpoint is damaged or of another run.
        BridgeError: the loss or the weights are no longer finite; safetensors is not installed.
    """
    require_safetensors()
    if evaluate_every < 1 or not 0 <= held_out < len(dataset.train.y):
        raise InputError(
            f"train: evaluate_every must be at least 1 and held_out from 0 to {len(dataset.train.y) - 1}; "
            f"got {evaluate_every} and {held_out}"
        )
    with (
        processes(device) as group,
        own_random_numbers(group.device),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        check_batch(recipe, len(dataset.train.y) - held_out, group)
        recipe = replace(recipe, precision=resolved_precision(recipe, group.device))
        network, name = network_to_train(model, dataset, recipe, seed, group.device)
        channels = dataset.train.x.shape[1]
        if recipe.autoaugment and augment is None and channels != 3:
            raise InputError(
                f"train: autoaugment is a policy for images of 3 channels, and {dataset.name} has {channels}: take a "
                "recipe with autoaugment=False, such as SHORT (--recipe short)"
            )
        if recipe.spiking_steps and initial is None and isinstance(model, str):
            raise InputError("train: spiking_steps is for fine-tuning: give initial, the weights of an earlier run")
        if recipe.distillation and initial is None:
            raise InputError("train: distillation is from an earlier run's network: give initial, its weights")
        if initial is not None:
            load_checkpoint(network, initial)
        plan = Plan(
            name=name,
            layers=layers_checksum(network),
            dataset=dataset,
            recipe=recipe,
            out=Path(out),
            seed=seed,
            augment=augment or standard,
            compile=compiles(compile, recipe, len(dataset.train.y) - held_out, group.device),
            evaluate_every=evaluate_every,
            held_out=held_out,
            checkpoint_minutes=checkpoint_minutes,
            group=group,
            earlier=[] if initial is None else runs_of(Path(initial)),
        )
        with qcfs_in_float32(network, recipe.precision == "bfloat16"):
            training = _Training(plan, network)  # whose teacher, a copy, has that, too
            training.start(resume)
            training.run()
        return _finish(plan, training)


# ------------------------------------------------------------------------------------------------- the run itself


@dataclass
class _Position:
    """How far a run has come, and what it has measured in the epoch it is in (on the first process's images)."""

    epoch: int = 0
    batch: int = 0
    loss: float = 0.0
    correct: float = 0.0
    seconds: float = 0.0
    metrics: Metrics = field(default_factory=list)


class _Training:
    """A run: the network, its optimiser, and how far it has come."""

    def __init__(self, plan: Plan, model: nn.Module) -> None:
        self.plan, self.model = plan, model
        self.activations = [(module, module.threshold.requires_grad) for module in activations(model)]
        self.memory_format = memory_format(model)
        self.at = _Position()
        self.optimiser = self._new_optimiser()
        self.saved = "there is none yet"
        device = plan.group.device
        self.x, self.y = plan.images[0].x.to(device), plan.images[0].y.to(device)
        self.spiking = SpikingSteps(model, plan.recipe.spiking_steps) if plan.recipe.spiking_steps else None
        self.teacher = self._teacher() if plan.recipe.distillation else None

    def _teacher(self) -> Callable[[Tensor], Tensor]:
        """The network as it is now, for good, with as many levels as it was trained with."""
        teacher: Any = copy.deepcopy(self.model).eval().requires_grad_(False)
        trained = self.plan.earlier[-1].get("recipe")
        if trained is not None:
            levels = Recipe(**json.loads(trained)).levels
            for module in activations(teacher):
                module.levels = levels
        return torch.compile(teacher, dynamic=False) if self.plan.compile else teacher

    def _new_optimiser(self) -> torch.optim.SGD:
        recipe = self.plan.recipe
        thresholds = [module.threshold for module in activations(self.model)]
        of_qcfs = {id(threshold) for threshold in thresholds}
        others = [parameter for parameter in self.model.parameters() if id(parameter) not in of_qcfs]
        groups = [
            {"params": others, "weight_decay": recipe.weight_decay},
            {"params": thresholds, "weight_decay": recipe.threshold_weight_decay},
        ]
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)

    def start(self, resume: bool) -> None:
        """Take up the run where its checkpoint is, if there is one."""
        plan = self.plan
        if plan.group.writes:
            for abandoned in plan.out.glob(f".{Path(CHECKPOINT).stem}.*"):  # killed while it was being written
                abandoned.unlink(missing_ok=True)
            if not resume:  # else the next call would take it up, if this one is killed before it has its own
                (plan.out / CHECKPOINT).unlink(missing_ok=True)
        loaded: list[Any] = [None]
        if resume and plan.group.writes:
            loaded = [read_checkpoint(plan.out / CHECKPOINT, plan.settings)]
        if plan.group.size > 1:
            dist.broadcast_object_list(loaded, device=plan.group.device)
        if loaded[0] is None:
            return
        try:
            self.model.load_state_dict(loaded[0]["model"])
            self.optimiser.load_state_dict(loaded[0]["optimiser"])
            self.at = _Position(**loaded[0]["position"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise damaged(plan.out / CHECKPOINT, error) from error
        self.saved = self._where(plan.out / CHECKPOINT)
        if plan.group.writes:
            self._write_metrics()  # the run may have been killed between the two
        LOG.log(self._level, "%s: going on from %s", plan.name, self.saved)

    def run(self) -> None:
        """Train until the last epoch is over."""
        plan = self.plan
        if self.at.epoch == plan.recipe.epochs:
            return
        self._check_writable()
        LOG.log(self._level, "%s on %s: %d epochs of %d steps, %s%s", plan.name, plan.dataset.name, plan.recipe.epochs,
                plan.batches, plan.recipe.precision, ", compiled" if plan.compile else "")  # fmt: skip
        try:
            with ProgressBar(plan, self.at.epoch * plan.batches + self.at.batch, LOG.info) as bar:
                forward = self._forward()
                while self.at.epoch < plan.recipe.epochs:
                    if 0 < plan.recipe.relu_epochs == self.at.epoch and self.at.batch == 0:
                        self._begin_fine_tuning()
                        forward = self._forward()
                    self._epoch(forward, bar)
        finally:
            self._rectify(False)
        if plan.group.size > 1:
            for buffer in self.model.buffers():  # batch norm's, which each process has of its own images
                dist.broadcast(buffer, 0)

    def _check_writable(self) -> None:
        """Raise `InputError` before anything is trained that could not be kept."""
        if self.plan.group.writes and self.at == _Position():
            with replacing(self.plan.out / METRICS):
                pass

    def _forward(self) -> Callable[[Tensor], Tensor]:
        """The network as the steps call it: with ReLU or QCFS, on all processes, compiled."""
        group = self.plan.group
        rectified = self.plan.rectified(self.at.epoch)
        self._rectify(rectified)
        forward: Any = self.model
        if group.size > 1:
            # This also gives every process the first one's parameters, and in every step its batch norm statistics.
            forward = DistributedDataParallel(forward, [group.device] if group.device.type == "cuda" else None)
        self.uncompiled: Callable[[Tensor], Tensor] = forward
        if self.plan.compile:
            torch._dynamo.reset()  # what was compiled with ReLU in it must not be taken for QCFS
            forward = torch.compile(forward, dynamic=False)
        stepped: Callable[[Tensor], Tensor] = forward
        return stepped

    def _begin_fine_tuning(self) -> None:
        """ReLU's time is over: λ from data, and an optimiser without the momentum of another network."""
        plan = self.plan
        self._rectify(False)
        if plan.group.writes:
            images = plan.images[0].x[self._order(self.at.epoch)[:FIT_IMAGES].cpu()]
            fit_thresholds(self.model, plan.dataset.normalise(images).to(plan.group.device))
        self.optimiser = self._new_optimiser()

    def _rectify(self, wanted: bool) -> None:
        """Every QCFS acts as ReLU, and its λ rests; or as itself again, and λ learns if it did before the run."""
        for module, learns in self.activations:
            module.threshold.requires_grad_(learns and not wanted)
            module.threshold.grad = None
            if wanted:
                module.__dict__["forward"] = F.relu  # before the class's own; no name in the state dict changes
            else:
                module.__dict__.pop("forward", None)

    def _order(self, epoch: int) -> Tensor:
        """The training images in the order of `epoch`."""
        generator = torch.Generator().manual_seed(derived(self.plan.seed, "order", epoch))
        return torch.randperm(len(self.y), generator=generator).to(self.y.device)

    def _epoch(self, forward: Callable[[Tensor], Tensor], bar: ProgressBar) -> None:
        """The rest of the epoch that the run is in, its measurements and its checkpoint."""
        plan, at = self.plan, self.at
        order = self._order(at.epoch)
        share = plan.recipe.batch_size // plan.group.size
        before, began, last_saved = at.seconds, time.monotonic(), time.monotonic()
        self.model.train(not self.spiking)  # spikes are of the network as it is at inference
        while at.batch < plan.batches:
            first = at.batch * plan.recipe.batch_size + plan.group.rank * share
            rate = self._step(forward, order[first : first + share])
            at.batch += 1
            bar.advance()
            at.seconds = before + time.monotonic() - began
            if time.monotonic() - last_saved >= plan.checkpoint_minutes * 60 and at.batch < plan.batches:
                self._save()
                last_saved = time.monotonic()
        accuracy = self._accuracy()
        at.metrics.append(
            {
                "epoch": at.epoch + 1,
                "activation": "relu" if plan.rectified(at.epoch) else "qcfs",
                "loss": at.loss / plan.batches,
                "train_accuracy": at.correct / (plan.batches * share),
                plan.watched: accuracy,
                "learning_rate": rate,
                "seconds": round(before + time.monotonic() - began, 3),
            }
        )
        self.at = _Position(epoch=at.epoch + 1, metrics=at.metrics)
        self._save()
        bar.tell(at.metrics[-1])

    def _step(self, forward: Callable[[Tensor], Tensor], chosen: Tensor) -> float:
        """Learn from the `chosen` images; the learning rate that was used."""
        plan, at, recipe = self.plan, self.at, self.plan.recipe
        device = plan.group.device
        seed = derived(plan.seed, "step", at.epoch, at.batch, plan.group.rank)
        torch.manual_seed(seed)  # dropout's
        generator = torch.Generator(device).manual_seed(seed)
        rate = learning_rate(recipe, at.epoch, at.batch / plan.batches)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        x = plan.augment(
            self.x[chosen],
            plan.dataset.mean,
            plan.dataset.std,
            generator,
            **recipe.augmentation,
        ).contiguous(memory_format=self.memory_format)
        y = self.y[chosen]
        spiking = self.spiking if at.batch % 2 else None
        if spiking:
            few = max(1, len(x) // spiking.steps)
            x, y = x[:few], y[:few]
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            logits = spiking.logits(self.uncompiled, x) if spiking else forward(x)
            with torch.no_grad():
                taught = None if self.teacher is None else self.teacher(x)
        logits = logits.float()
        loss = F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
        if taught is not None:
            loss = torch.lerp(loss, divergence(logits, taught.float()), recipe.distillation)
        value = loss.item()
        if not math.isfinite(value):
            raise self._diverged(f"the loss became {value} in epoch {at.epoch + 1}, batch {at.batch + 1}")
        self.optimiser.zero_grad()
        loss.backward()
        if self.spiking:
            nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_GRADIENT)
        self.optimiser.step()
        at.loss += value
        at.correct += float((logits.detach().argmax(1) == y).float().mean()) * len(chosen)
        return rate

    def _accuracy(self) -> float | None:
        """The accuracy to report after this epoch, if it is its turn. Measured by the first process alone."""
        plan, over = self.plan, self.at.epoch + 1
        if not plan.group.writes or (over % plan.evaluate_every and over != plan.recipe.epochs):
            return None
        return accuracy(self.model, plan.images[1], plan.dataset)

    def _save(self) -> None:
        if not self.plan.group.writes:
            return
        weights = self.model.state_dict()
        if not all(value.isfinite().all() for value in weights.values()):
            raise self._diverged("weights are no longer finite")
        path = self.plan.out / CHECKPOINT
        content = {
            "settings": json.dumps(self.plan.settings),
            "model": weights,
            "optimiser": self.optimiser.state_dict(),
            "position": vars(self.at),
        }
        with replacing(path) as file:
            torch.save(content, file)
        self._write_metrics()
        self.saved = self._where(path)

    def _write_metrics(self) -> None:
        with replacing(self.plan.out / METRICS) as file:
            file.write("".join(f"{json.dumps(line)}\n" for line in self.at.metrics).encode())

    def _diverged(self, what: str) -> BridgeError:
        return BridgeError(
            f"train: {what}; try a smaller learning_rate than {self.plan.recipe.learning_rate:g}, in another folder. "
            f"Last checkpoint: {self.saved}"
        )

    def _where(self, path: Path) -> str:
        return f"{path}, after epoch {self.at.epoch}" + (f" and {self.at.batch} batches" if self.at.batch else "")

    @property
    def _level(self) -> int:
        return logging.INFO if self.plan.group.writes else logging.DEBUG


# ------------------------------------------------------------------------------------------------ when it is over


def _finish(plan: Plan, training: _Training) -> Result:
    """The result of a run that is over, its weights and its card written."""
    model = training.model.eval()
    metrics = training.at.metrics
    weights, card = plan.out / WEIGHTS, plan.out / CARD
    measured = [metrics[-1][plan.watched]]
    if plan.group.writes:
        if plan.held_out:
            measured = [accuracy(model, plan.dataset.test, plan.dataset)]
        save_weights(weights, model, weights_metadata(plan, measured[0]))
        with replacing(card) as file:
            file.write(model_card(plan, metrics, measured[0]).encode())
        LOG.info("%s: test accuracy %.2f %%; wrote %s", plan.name, 100 * measured[0], weights)
    if plan.group.size > 1:
        dist.broadcast_object_list(measured, device=plan.group.device)
    return Result(model, measured[0], metrics, weights, card)
