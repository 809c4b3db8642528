"""The pool that kernels run on: any number of threads, callers and processes."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from octavo.kernels.cpu import CpuKernels
from octavo.kernels.interface import Linear


@pytest.fixture(autouse=True)
def restored_thread_count() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def product_of_size(num_outputs: int, num_inputs: int) -> tuple[Linear, Tensor, Tensor]:
    """A product, an input of 40 rows, and the result on one thread."""
    torch.manual_seed(0)
    linear = CpuKernels().prepare_linear(
        [torch.randn(num_outputs, num_inputs)], None, torch.float32
    )
    x = torch.randn(40, num_inputs)
    torch.set_num_threads(1)
    return linear, x, linear(x)


@pytest.mark.parametrize("num_threads", [2, 3, 7, 16, 300])
def test_results_do_not_depend_on_the_number_of_threads(num_threads: int) -> None:
    linear, x, expected = product_of_size(200, 300)
    torch.set_num_threads(num_threads)
    for _ in range(20):
        assert torch.equal(linear(x), expected)


def test_the_number_of_threads_may_change_at_any_time() -> None:
    linear, x, expected = product_of_size(200, 300)
    for num_threads in [4, 1, 2, 6, 3] * 10:
        torch.set_num_threads(num_threads)
        assert torch.equal(linear(x), expected)


def test_callers_in_several_threads_get_their_own_results() -> None:
    linear, x, _ = product_of_size(512, 512)
    inputs = [x * (number + 1) for number in range(4)]
    expected = [linear(each) for each in inputs]
    wrong: list[int] = []

    def call(number: int) -> None:
        torch.set_num_threads(3)
        for _ in range(200):
            if not torch.equal(linear(inputs[number]), expected[number]):
                wrong.append(number)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


def test_workers_that_fell_asleep_are_woken() -> None:
    linear, x, expected = product_of_size(200, 300)
    torch.set_num_threads(4)
    for _ in range(10):
        assert torch.equal(linear(x), expected)
        time.sleep(0.002)


def multiply_in_child(linear: Linear, x: Tensor, expected: Tensor, sender: object) -> None:
    torch.set_num_threads(2)
    sender.send(bool(torch.equal(linear(x), expected)))  # type: ignore[attr-defined]


# Python 3.12 warns of forks in processes with threads; this test is about them.
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_starts_threads_of_its_own() -> None:
    linear, x, expected = product_of_size(200, 300)
    torch.set_num_threads(2)
    assert torch.equal(linear(x), expected)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=multiply_in_child, args=(linear, x, expected, sender))
    child.start()
    assert receiver.poll(60), "the child hangs"
    assert receiver.recv() is True
    child.join(10)
    assert child.exitcode == 0


def test_long_products_let_other_threads_use_the_interpreter() -> None:
    """They release the GIL: a counting thread goes on while products run."""
    linear = CpuKernels().prepare_linear([torch.randn(4096, 1024)], None, torch.float32)
    x = torch.randn(256, 1024)
    torch.set_num_threads(1)
    stop = threading.Event()
    counts = [0]

    def count() -> None:
        while not stop.is_set():
            counts[0] += 1
            time.sleep(0)

    counter = threading.Thread(target=count)
    counter.start()
    most = 0
    for _ in range(20):  # a busy machine may not run the counter during the first ones
        before = counts[0]
        linear(x)
        most = max(most, counts[0] - before)
    stop.set()
    counter.join()
    assert most > 10
