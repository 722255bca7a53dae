"""Where batches are measured: here, or by an executor of other threads, processes or machines, each batch once."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future

from bridge.errors import BridgeError
from bridge.validation.compare import Batch, Findings

logger = logging.getLogger(__name__)

Measure = Callable[[Batch], Findings]

WAITING = 16
"""Batches that an executor is given before the first must be done: what bounds memory there."""
TRIES = 3
"""How often a batch is given to an executor whose worker died."""


def measured(executor: Executor | None, measure: Measure, batches: Iterable[Batch]) -> Iterator[Findings]:
    """The findings of all `batches`, in their order, measured by `executor`; None: here."""
    if executor is None:
        yield from map(measure, batches)
        return
    waiting: deque[tuple[Batch, Future[Findings] | None]] = deque()
    for batch in batches:
        waiting.append((batch, _submit(executor, measure, batch)))
        if len(waiting) >= WAITING:
            yield _result(executor, measure, *waiting.popleft())
    while waiting:
        yield _result(executor, measure, *waiting.popleft())


def _submit(executor: Executor, measure: Measure, batch: Batch) -> Future[Findings] | None:
    """The batch's future; None if the executor is broken for good."""
    try:
        return executor.submit(measure, batch)
    except (BrokenExecutor, RuntimeError):
        return None


def _result(executor: Executor, measure: Measure, batch: Batch, future: Future[Findings] | None) -> Findings:
    """What `future` gives; if its worker died, what another does; if there is none left, what is measured here."""
    for _ in range(TRIES):
        if future is None:
            break
        try:
            return future.result()
        except BridgeError:
            raise
        except Exception as error:  # the executor's own: a worker died, or a result was lost on its way
            logger.warning("images from %d on: measured again, since %s: %s", batch.start, type(error).__name__, error)
            future = _submit(executor, measure, batch)
    return measure(batch)
