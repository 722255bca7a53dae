"""The progress of a training run, as its user sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from bridge.zoo.training.plan import Plan


class ProgressBar:
    """How far a run has come: a bar with the time left on a terminal, and a line an epoch, there or in the log."""

    def __init__(self, plan: Plan, done: int, log: Callable[[str], None]) -> None:
        """`done`: steps that are over already; `log` takes the lines where there is no terminal."""
        self.plan, self.log = plan, log
        console = Console(stderr=True)
        shown = plan.group.writes and (console.is_terminal or console.is_jupyter)
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.1f} %")
        self.bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not shown)
        total = plan.recipe.epochs * plan.batches
        self.task = self.bar.add_task(f"training {plan.name}", total=total, completed=done)

    def __enter__(self) -> ProgressBar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self) -> None:
        self.bar.advance(self.task)

    def tell(self, metrics: dict[str, Any]) -> None:
        """The line of the epoch that is just over, from its `metrics`."""
        if not self.plan.group.writes:
            return
        over, epochs = metrics["epoch"], self.plan.recipe.epochs
        parts = [f"loss {metrics['loss']:.4f}", f"train {metrics['train_accuracy']:.2%}"]
        if metrics[self.plan.watched] is not None:
            parts.append(
                f"{self.plan.watched.removesuffix('_accuracy').replace('_', ' ')} {metrics[self.plan.watched]:.2%}"
            )
        parts.append(f"{metrics['seconds']:.1f} s")
        if over < epochs:
            parts.append(f"about {(epochs - over) * metrics['seconds'] / 60:.0f} min left")
        line = f"epoch {over} of {epochs} ({metrics['activation']}): {', '.join(parts)}"
        if self.bar.disable:
            self.log(line)
        else:
            self.bar.console.print(line, highlight=False)  # above the bar
