"""The gateway's way to its ledger: a thread that writes, many operations in one durable transaction.

Everything that waits while one transaction is flushed to the disk goes into the next one together (group
commit), so the event loop never waits for a disk and full durability costs little.
"""

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from clawdeploy.errors import ClawError
from clawdeploy.store import LedgerStore

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Operation = Callable[[LedgerStore], Any]
_Batch = list[tuple[Operation, "asyncio.Future[Any]"]]

# A transaction with so many operations takes no more: bounds how long the first one waits for the last.
_MOST_AT_ONCE = 256


class LedgerUnavailableError(Exception):
    """The ledger could not be written (a full or broken disk); nothing of the operation has happened."""


class Ledger:
    """Runs operations of a LedgerStore, in the order in which they were asked for."""

    def __init__(self, open_store: Callable[[], LedgerStore]) -> None:
        """``open_store`` is called in the writing thread, to which SQLite's connection then belongs."""
        self._open_store = open_store
        self._asked: _Batch = []
        self._queue: SimpleQueue[_Batch] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._write, name="ledger")

    async def start(self) -> None:
        """Open the ledger. Raises ClawError if it is missing."""
        self._thread.start()
        await self.run(lambda store: None)

    async def close(self) -> None:
        """Finish everything that was asked for."""
        self._hand_over()
        self._queue.put([])
        await asyncio.to_thread(self._thread.join)

    async def run(self, operation: Callable[[LedgerStore], Result]) -> Result:
        """The operation's result, once it is on the disk.

        Raises what the operation raised, and LedgerUnavailableError when it could not be written.
        """
        return await self.begin(operation)

    def begin(self, operation: Callable[[LedgerStore], Result]) -> "asyncio.Future[Result]":
        """Like ``run``, for those who need not wait: the operation's place in the order is taken now."""
        future: asyncio.Future[Result] = self._loop.create_future()
        if not self._asked:
            # In the loop's next turn: waking the thread for each operation costs more than the operation.
            self._loop.call_soon(self._hand_over)
        self._asked.append((operation, future))
        return future

    def _hand_over(self) -> None:
        if self._asked:
            self._queue.put(self._asked)
            self._asked = []

    # --- in the thread ------------------------------------------------------------------------------

    def _write(self) -> None:
        try:
            store = self._open_store()
        except (ClawError, sqlite3.Error) as error:
            self._refuse_all(error)
            return
        while batch := self._next_batch():
            outcomes = _commit(store, [operation for operation, _ in batch])
            self._deliver([(future, *outcome) for (_, future), outcome in zip(batch, outcomes, strict=True)])
        store.close()

    def _next_batch(self) -> _Batch:
        """Everything that waits; nothing once the end has come."""
        batch = self._queue.get()
        while batch and len(batch) < _MOST_AT_ONCE and not self._queue.empty():
            more = self._queue.get()
            if not more:
                self._queue.put(more)  # the end, to be seen again after this batch
                break
            batch += more
        return batch

    def _refuse_all(self, error: Exception) -> None:
        while batch := self._next_batch():
            self._deliver([(future, None, error) for _, future in batch])

    def _deliver(self, answers: list[tuple["asyncio.Future[Any]", Any, Exception | None]]) -> None:
        self._loop.call_soon_threadsafe(_answer, answers)


def _answer(answers: list[tuple["asyncio.Future[Any]", Any, Exception | None]]) -> None:
    for future, result, error in answers:
        if future.done():  # cancelled: whoever asked is gone, what was done stays done
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


def _commit(store: LedgerStore, operations: list[Operation]) -> list[tuple[Any, Exception | None]]:
    """Run the operations in one transaction; when one of them breaks it, each in its own."""
    try:
        with store.transaction():
            return [_try(store, operation) for operation in operations]
    except Exception as error:  # the thread must live on, whatever an operation did
        if len(operations) > 1:
            return [outcome for operation in operations for outcome in _commit(store, [operation])]
        log.error("the ledger cannot be written: %s", error)
        return [(None, LedgerUnavailableError(str(error)))]


def _try(store: LedgerStore, operation: Operation) -> tuple[Any, Exception | None]:
    """A refusal is an answer: it was made before any change, so the others' changes stand."""
    try:
        return operation(store), None
    except ClawError as refusal:
        return None, refusal
