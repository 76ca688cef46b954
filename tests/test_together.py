"""Streams side by side: the same items in the same order, however many threads there are, and an end when it is asked
for."""
import threading
from itertools import count

import pytest
import torch

from gradcheck.models.networks import use_threads
from gradcheck.together import in_step


@pytest.fixture(params=[1, 2, 4])
def threads(request):
    with use_threads(request.param): yield request.param


def failing():
    yield 0
    raise ValueError("the second item")


def test_items_come_in_step(threads):
    assert list(in_step({"A": count(), "B": count(10)}, 3)) == [{"A": k, "B": 10 + k} for k in range(3)]
    assert list(in_step({"A": count()}, 2)) == [{"A": 0}, {"A": 1}]
    assert torch.get_num_threads() == threads


def test_two_streams_work_at_the_same_time_where_there_are_two_threads(threads):
    both = threading.Barrier(2)
    def meeting():
        while True: yield both.wait(timeout=5 if threads > 1 else 0.01)
    streams = {"A": meeting(), "B": meeting()}
    if threads > 1: assert all(sorted(items.values()) == [0, 1] for items in in_step(streams, 2))
    else:
        with pytest.raises(threading.BrokenBarrierError): list(in_step(streams, 2))


@pytest.mark.parametrize("asked, seen", [(0, []), (1, [["A"]]), (2, [["A", "B"]]), (3, [["A", "B"], ["A"]])])
def test_what_was_begun_when_stop_came_is_finished(threads, asked, seen):
    times = count()
    assert [list(items) for items in in_step({"A": count(), "B": count()}, 9, lambda: next(times) >= asked)] == seen


def test_an_error_of_one_stream_is_told_and_the_threads_are_as_before(threads):
    with pytest.raises(ValueError, match="the second item"): list(in_step({"A": count(), "B": failing()}, 3))
    assert torch.get_num_threads() == threads


def test_a_stream_that_is_left_gives_its_threads_back(threads):
    stream = in_step({"A": count(), "B": count()}, 9)
    next(stream)
    stream.close()
    assert torch.get_num_threads() == threads
