"""Reports that wait to be decoded: those that arrive together are decoded together.

One worker takes what has come within a short window, longest wait first; each request gets its own
answers back. Memory is bounded by the number of waiting reports: one more is refused.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
Work = Callable[[Sequence[str]], Sequence[Record]]  # reports -> one record each, in order


class Full(Exception):
    """So many reports wait already."""


class Closing(Exception):
    """No more reports are taken."""


class Failed(Exception):
    """The decoder raised; named by the kind of its error, whose text may quote a report."""


@dataclass(frozen=True)
class Request:
    """Reports of one client, and where their records go."""

    reports: Sequence[str]
    records: "asyncio.Future[Sequence[Record]]"


class Waiting:
    """`work` runs in a thread, one batch at a time."""

    def __init__(self, work: Work, *, batch: int, most: int, window_s: float) -> None:
        self._work, self._batch, self._most, self._window_s = work, batch, most, window_s
        self._requests: deque[Request] = deque()
        self._arrived = asyncio.Event()
        self._is_closing = False
        self.n_waiting = 0

    async def ask(self, reports: Sequence[str]) -> Sequence[Record]:
        """Records of the reports, in order. Raises Full, Closing or Failed."""
        if self._is_closing:
            raise Closing
        if self.n_waiting + len(reports) > self._most:
            raise Full
        request = Request(reports, asyncio.get_running_loop().create_future())
        self.n_waiting += len(reports)
        self._requests.append(request)
        self._arrived.set()
        return await request.records  # cancelled where the answer takes too long

    async def run(self) -> None:
        """Decode until `close`, then what was accepted before it."""
        while True:
            await self._arrived.wait()
            if not self._requests:
                if self._is_closing:
                    return
                self._arrived.clear()
                continue
            if not self._is_closing:
                await asyncio.sleep(self._window_s)
            await self._decode(self._taken())

    def close(self) -> None:
        """Accept no more."""
        self._is_closing = True
        self._arrived.set()

    def _taken(self) -> list[Request]:
        """The next batch: whole requests, without those that were given up."""
        taken: list[Request] = []
        n = 0
        while self._requests and (not taken or n + len(self._requests[0].reports) <= self._batch):
            request = self._requests.popleft()
            self.n_waiting -= len(request.reports)
            if not request.records.done():
                taken.append(request)
                n += len(request.reports)
        return taken

    async def _decode(self, requests: Sequence[Request]) -> None:
        reports = [report for request in requests for report in request.reports]
        if not reports:
            return
        decoding = asyncio.ensure_future(asyncio.to_thread(self._work, reports))
        await asyncio.wait([decoding])
        error = decoding.exception()
        records = [] if error else decoding.result()
        start = 0
        for request in requests:
            end = start + len(request.reports)
            if error and not request.records.done():
                request.records.set_exception(Failed(type(error).__name__))
            elif not request.records.done():
                request.records.set_result(records[start:end])
            start = end
