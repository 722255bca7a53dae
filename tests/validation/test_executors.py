"""Batches measured elsewhere: the same agreement to the last bit, whatever dies on the way."""

from __future__ import annotations

import json
import multiprocessing
import os
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import networks
from support.backends import require

import bridge
from bridge import BackendError
from bridge.simulate.images import BATCH

STEPS = 4


@pytest.fixture(scope="module")
def case():
    """Three batches and a bit, of arbitrary floats; the agreement measured here."""
    for name in ("snntorch", "spikingjelly"):
        require(name)
    model, shape = networks.cnn()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.rand(parameter.shape, generator=generator))
    x = torch.randn(3 * BATCH + 5, *shape, generator=generator)
    network = bridge.convert(model.eval(), x[:1])
    labels = np.arange(len(x)) % 4
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the workers: sums can depend on it in their last bit
    try:
        yield network, x, labels, result(network, x, labels, None)
    finally:
        torch.set_num_threads(threads)


def result(network, x, labels, executor) -> dict:
    agreement = network.validate(
        x, STEPS, ["snntorch", "spikingjelly"], labels=labels, images={"snntorch": 70}, executor=executor
    ).to_dict()
    del agreement["environment"]  # the time is in it
    return json.loads(json.dumps(agreement))


def one_thread() -> None:
    torch.set_num_threads(1)


def pool(workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=one_thread)


def test_threads(case):
    network, x, labels, expected = case
    with ThreadPoolExecutor(2) as executor:
        assert result(network, x, labels, executor) == expected


@pytest.mark.slow
def test_a_process_pool(case):
    network, x, labels, expected = case
    with pool(2) as executor:
        assert result(network, x, labels, executor) == expected


class DyingOnce:
    """A backend that kills the process it runs in, the first time that it gets a batch with 64 images."""

    name = "spikingjelly"

    def __init__(self, mark: Path) -> None:
        self.mark = mark
        self.home = os.getpid()

    def available(self):
        return require("spikingjelly").available()

    def export(self, graph):
        return require("spikingjelly").export(graph)

    def run(self, native, x, steps, *, membranes=False):
        if os.getpid() != self.home and len(x) == BATCH and not self.mark.exists():
            self.mark.touch()
            os._exit(9)
        return require("spikingjelly").run(native, x, steps, membranes=membranes)


@pytest.mark.slow
def test_a_worker_that_dies(case, tmp_path, caplog):
    """It takes its pool with it; what was not done is measured here, and nothing is counted twice."""
    network, x, labels, _ = case
    expected = network.validate(x, STEPS, ["spikingjelly"], labels=labels).to_dict()
    with pool(1) as executor:
        backend = DyingOnce(tmp_path / "died")
        found = network.validate(x, STEPS, [backend], labels=labels, executor=executor).to_dict()
    assert (tmp_path / "died").exists()
    assert "measured again" in caplog.text
    del expected["environment"], found["environment"]
    assert json.dumps(found) == json.dumps(expected)


@pytest.mark.slow
def test_dask(case):
    try:
        import dask.distributed as distributed
    except ImportError:
        if os.environ.get("CI"):
            raise
        pytest.skip('dask is not installed: pip install "distributed>=2025.1"')
    network, x, labels, expected = case
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.run(one_thread)
        assert result(network, x, labels, client.get_executor()) == expected


class Losing(Executor):
    """An executor that loses what it was given, a number of times, before it does it."""

    def __init__(self, losses: int) -> None:
        self.losses, self.done = losses, 0

    def submit(self, function, /, *arguments, **options):
        future: Future[Any] = Future()
        if self.losses:
            self.losses -= 1
            future.set_exception(ConnectionError("lost"))
        else:
            self.done += 1
            try:
                future.set_result(function(*arguments, **options))
            except Exception as error:
                future.set_exception(error)
        return future


@pytest.mark.parametrize("losses", [1, 5, 1000])
def test_what_is_lost_is_measured_again(case, losses):
    network, x, labels, expected = case
    assert result(network, x, labels, Losing(losses)) == expected


def test_an_error_of_ours_is_not_tried_again(case):
    network, x, _, _ = case

    class Failing(DyingOnce):
        def run(self, native, x, steps, *, membranes=False):
            raise BackendError("no such luck")

    executor = Losing(0)
    with pytest.raises(BackendError, match="no such luck"):
        network.validate(x[:5], STEPS, [Failing(Path("unused"))], executor=executor)
    assert executor.done == 1
