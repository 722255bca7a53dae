"""Train the zoo's networks with QCFS: resumable to the bit, on one processor, several, or GPUs.

Everything random in a step comes from the seed and the numbers of the epoch, the batch and the process alone. So there
are no generator states to save, and a run that was killed anywhere goes on as if nothing had happened.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import logging
import math
import os
import shutil
import sysconfig
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bridge._util.files import replacing
from bridge._util.memory_format import while_learning
from bridge.converters.torch_models.model import at_inference
from bridge.errors import BridgeError, InputError
from bridge.passes.calibration.losses import divergence
from bridge.prepare.checkpoints import load_checkpoint
from bridge.prepare.qcfs import QCFS
from bridge.prepare.thresholds import fit_thresholds
from bridge.zoo.models import activations, build, require_safetensors, save_weights
from bridge.zoo.recipes import PAPER, Recipe, learning_rate, recipe_named
from bridge.zoo.training.augment import standard
from bridge.zoo.training.processes import Group, processes
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

if TYPE_CHECKING:
    from bridge.zoo.data import Dataset, Images

LOG = logging.getLogger(__name__)

FIT_IMAGES = 1024
"""Training images that λ is fitted to after ReLU epochs."""
EVALUATED_AT_ONCE = 250
COMPILE_FROM = 1500
"""Steps that do not spike from which compiling, a minute, pays: it saves 0.2 s a step of ResNet-20 on two cores."""

Augment = Callable[..., Tensor]
"""Called like ``bridge.zoo.training.augment.standard``: uint8 ``[B, C, H, W]``, mean, deviation, generator and the
recipe's padding, flip, autoaugment and cutout in; normalised float32 of the same shape out."""
Compile = bool | Literal["auto"]
Metrics = list[dict[str, Any]]


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
    from bridge.zoo.data import dataset

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
        compile: use torch.compile in steps that do not spike; ``"auto"`` does in runs of at least `COMPILE_FROM` of
            them, where there is a compiler. Accuracy is always measured uncompiled and in float32, as the network will
            be converted.
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
        _own_random_numbers(group.device),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        _check_batch(recipe, len(dataset.train.y) - held_out, group)
        recipe = replace(recipe, precision=_precision(recipe, group.device))
        network, name = _network(model, dataset, recipe, seed, group.device)
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
            layers=_layers(network),
            dataset=dataset,
            recipe=recipe,
            out=Path(out),
            seed=seed,
            augment=augment or standard,
            compile=_compiles(compile, recipe, len(dataset.train.y) - held_out, group.device),
            evaluate_every=evaluate_every,
            held_out=held_out,
            checkpoint_minutes=checkpoint_minutes,
            group=group,
            earlier=[] if initial is None else runs_of(Path(initial)),
        )
        with _qcfs_in_float32(network, recipe.precision == "bfloat16"):
            training = _Training(plan, network)  # whose teacher, a copy, has that, too
            training.start(resume)
            training.run()
        return _finish(plan, training)


# ------------------------------------------------------------------------------------------- what a run is given


def _network(
    model: str | nn.Module, dataset: Dataset, recipe: Recipe, seed: int, device: torch.device
) -> tuple[nn.Module, str]:
    """The network to train, on the `device`, and what to call it."""
    shape: Any = tuple(dataset.train.x.shape[1:])
    torch.manual_seed(derived(seed, "weights"))
    if isinstance(model, str):
        network, name = build(model, len(dataset.classes), shape, recipe.levels, recipe.threshold), model
    else:
        network, name = model, type(model).__name__
    found = {module.levels for module in activations(network)}
    if not found:
        raise InputError(f"train: {name} has no QCFS: call bridge.replace_activations(model, levels=...) first")
    if found != {recipe.levels}:
        raise InputError(f"train: {name} has L = {sorted(found)}, the recipe L = {recipe.levels}: make them equal")
    network.to(device)
    try:
        with at_inference(network), torch.no_grad():
            out = network(dataset.normalise(dataset.train.x[:2]).to(device))
    except Exception as error:
        raise InputError(f"train: {name} does not take images {list(shape)}: {error}") from error
    if out.shape[1:] != (len(dataset.classes),):
        raise InputError(
            f"train: {name} gives {list(out.shape[1:])} values an image; {dataset.name} has "
            f"{len(dataset.classes)} classes"
        )
    network.to(memory_format=_memory_format(network))  # type: ignore[call-overload]  # now that λ of channels is there
    return network, name


def _layers(network: nn.Module) -> str:
    """A checksum of what `network` is made of, whatever the values of its parameters."""
    described = [
        (name, type(module).__name__, "" if isinstance(module, QCFS) else module.extra_repr())
        for name, module in network.named_modules()
    ]
    return f"{zlib.crc32(repr(described).encode()):08x}"


def _memory_format(network: nn.Module) -> torch.memory_format:
    """What its images and weights have while it learns."""
    return while_learning(
        (module.kernel_size, module.stride, module.in_channels)
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    )


def _check_batch(recipe: Recipe, images: int, group: Group) -> None:
    if recipe.batch_size > images:
        raise InputError(f"train: batch_size = {recipe.batch_size}, but there are only {images} training images")
    if recipe.batch_size % group.size:
        raise InputError(f"train: batch_size = {recipe.batch_size} cannot be shared out to {group.size} processes")


def _precision(recipe: Recipe, device: torch.device) -> Literal["float32", "bfloat16"]:
    if recipe.precision != "auto":
        return recipe.precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    has_it = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if device.type == "cpu" and has_it else "float32"


def _compiles(wanted: Compile, recipe: Recipe, images: int, device: torch.device) -> bool:
    if wanted != "auto":
        return wanted
    steps = recipe.epochs * (images // recipe.batch_size)
    if (steps // 2 if recipe.spiking_steps else steps) < COMPILE_FROM:
        return False
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    compiler = shutil.which(os.environ.get("CXX", "g++")) is not None
    return device.type == "cpu" and compiler and Path(sysconfig.get_paths()["include"], "Python.h").exists()


def derived(*parts: int | str) -> int:
    """A seed that depends on all `parts` and on nothing else."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "big")


# ------------------------------------------------------------------------------------------- while a run lasts


@contextmanager
def _own_random_numbers(device: torch.device) -> Iterator[None]:
    """Leave the caller's random numbers alone."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def _qcfs_in_float32(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Under autocast, every QCFS gets float32.

    λ's gradient is the difference of two sums over all activations, of a/λ and of z/λ, which bfloat16 rounds to 8 bits
    each: on random activations it came out 2 % wrong for λ = 2 and 13 % for λ = 8. Compiled, float32 costs next to
    nothing here, for the values stay in the registers.
    """
    hooks = [
        module.register_forward_pre_hook(lambda _, arguments: (arguments[0].float(),))
        for module in activations(model)
        if wanted
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# ------------------------------------------------------------------------------------------------- the run itself


@dataclass(frozen=True)
class Plan:
    """All that is settled before the first step; `train`, `_layers` and `runs_of`, of `earlier`, say what each is."""

    name: str
    layers: str
    dataset: Dataset
    recipe: Recipe
    out: Path
    seed: int
    augment: Augment
    compile: bool
    evaluate_every: int
    held_out: int
    checkpoint_minutes: float
    group: Group
    earlier: list[dict[str, str]]

    @cached_property
    def images(self) -> tuple[Images, Images]:
        """The images to train on, and those to report accuracy on meanwhile."""
        if not self.held_out:
            return self.dataset.train, self.dataset.test
        from bridge.zoo.data import split

        return split(self.dataset.train, self.held_out, self.seed)

    @property
    def watched(self) -> str:
        """What the accuracy on the second of `images` is called."""
        return "held_out_accuracy" if self.held_out else "test_accuracy"

    @property
    def batches(self) -> int:
        """Steps an epoch."""
        return len(self.images[0].y) // self.recipe.batch_size

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the final weights depend on, but for a module's own first weights: called again, it is half trained."""
        train = self.dataset.train
        return {
            "model": self.name,
            "layers": self.layers,
            "data": self.dataset.name,
            "mean": list(self.dataset.mean),
            "std": list(self.dataset.std),
            "images": zlib.crc32(train.y.numpy().tobytes(), zlib.crc32(train.x.numpy().tobytes())),
            "held_out": self.held_out,
            "seed": self.seed,
            "augment": f"{getattr(self.augment, '__module__', '')}.{getattr(self.augment, '__qualname__', '')}",
            "processes": self.group.size,
            "device": self.group.device.type,
            "compile": self.compile,
            "initial": self.earlier[-1]["crc32"] if self.earlier else None,
            **{f"recipe.{name}": value for name, value in asdict(self.recipe).items()},
        }

    def rectified(self, epoch: int) -> bool:
        """Whether `epoch` has ReLU in the place of QCFS."""
        return epoch < self.recipe.relu_epochs


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
        self.memory_format = _memory_format(model)
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
            with _Bar(plan, self.at) as bar:
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

    def _epoch(self, forward: Callable[[Tensor], Tensor], bar: _Bar) -> None:
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
        bar.tell(self.at)

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
        with replacing(path) as temporary:
            torch.save(content, temporary)
        self._write_metrics()
        self.saved = self._where(path)

    def _write_metrics(self) -> None:
        with replacing(self.plan.out / METRICS) as temporary:
            temporary.write_text("".join(f"{json.dumps(line)}\n" for line in self.at.metrics), encoding="utf-8")

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


def accuracy(model: nn.Module, images: Images, dataset: Dataset) -> float:
    """The share of `images` that `model` puts in the right class, in float32, which a GPU would round to tf32."""
    device = next(model.parameters()).device
    cudnn = torch.backends.cudnn
    correct = 0
    with at_inference(model), torch.no_grad(), cudnn.flags(enabled=cudnn.enabled, allow_tf32=False):
        for x, y in zip(images.x.split(EVALUATED_AT_ONCE), images.y.split(EVALUATED_AT_ONCE), strict=True):
            batch = dataset.normalise(x).to(device).contiguous(memory_format=torch.channels_last)
            correct += int((model(batch).argmax(1).cpu() == y).sum())
    return correct / len(images.y)


class _Bar:
    """How far a run has come: a bar with the time left on a terminal, and a line an epoch, there or in the log."""

    def __init__(self, plan: Plan, at: _Position) -> None:
        self.plan = plan
        console = Console(stderr=True)
        shown = plan.group.writes and (console.is_terminal or console.is_jupyter)
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.1f} %")
        self.bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not shown)
        total, done = plan.recipe.epochs * plan.batches, at.epoch * plan.batches + at.batch
        self.task = self.bar.add_task(f"training {plan.name}", total=total, completed=done)

    def __enter__(self) -> _Bar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self) -> None:
        self.bar.advance(self.task)

    def tell(self, at: _Position) -> None:
        """The line of the epoch that is just over."""
        if not self.plan.group.writes:
            return
        last, epochs = at.metrics[-1], self.plan.recipe.epochs
        parts = [f"loss {last['loss']:.4f}", f"train {last['train_accuracy']:.2%}"]
        if last[self.plan.watched] is not None:
            parts.append(
                f"{self.plan.watched.removesuffix('_accuracy').replace('_', ' ')} {last[self.plan.watched]:.2%}"
            )
        parts.append(f"{last['seconds']:.1f} s")
        if at.epoch < epochs:
            parts.append(f"about {(epochs - at.epoch) * last['seconds'] / 60:.0f} min left")
        line = f"epoch {at.epoch} of {epochs} ({last['activation']}): {', '.join(parts)}"
        if self.bar.disable:
            LOG.info(line)
        else:
            self.bar.console.print(line, highlight=False)  # above the bar


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
        with replacing(card) as temporary:
            temporary.write_text(model_card(plan, metrics, measured[0]), encoding="utf-8")
        LOG.info("%s: test accuracy %.2f %%; wrote %s", plan.name, 100 * measured[0], weights)
    if plan.group.size > 1:
        dist.broadcast_object_list(measured, device=plan.group.device)
    return Result(model, measured[0], metrics, weights, card)
