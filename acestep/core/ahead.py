"""Does the next piece of preparing work on a thread while the present one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Ahead(Generic[Item, Result]):
    """`read` of items in their order. Two results are in memory at most: the one taken and the one being made."""

    def __init__(self, items: Iterable[Item], read: Callable[[Item], Result]) -> None:
        self._waiting = deque(items)
        self._read_item = read
        self._pool = ThreadPoolExecutor(1, "ahead")
        self._next: tuple[Item, Future[Result]] | None = None

    def __enter__(self) -> Self:
        self._start_next()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def take(self, item: Item) -> Result:
        """The result for `item`, which must be the next in order; raises what `read` raised."""
        assert self._next is not None and self._next[0] is item, "items are taken in the order they were announced"
        future = self._next[1]
        self._next = None
        try:
            return future.result()
        finally:
            self._start_next()

    def _start_next(self) -> None:
        if self._waiting:
            item = self._waiting.popleft()
            self._next = item, self._pool.submit(self._read_item, item)
