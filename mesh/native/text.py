"""Text of an answer as it comes, for either face of the client.

Iterating yields pieces of text; leaving early, by `break`, an exception or a cancelled scope, cancels the answer at the node. The
end is known once the iteration has ended: why, how many tokens, how long.

Spec: docs/client.md, section "Text".
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Protocol, Self

from mesh.native.answers import Answer, Gathering, Route, text_of
from protocol.inference import InferenceRequest, Reply


class AsyncExchange(Protocol):
    """One request under way, as a trio program reads its answer."""

    async def next_reply(self) -> Reply:
        """Wait for the next event; raises MeshError."""

    def close(self) -> None:
        """Let go of it; an answer that has not ended is cancelled. A second call does nothing."""


class Exchange(Protocol):
    """One request under way, as a plain program reads its answer."""

    def next_reply(self) -> Reply:
        """Wait for the next event; raises MeshError."""

    def close(self) -> None:
        """Let go of it; an answer that has not ended is cancelled. A second call does nothing."""


class AsyncText:
    """Iterate over it with `async for`; use it as a context manager where the iteration may stop early.

    Attributes:
        request_id: in hexadecimal digits, as `isochrone explain` takes it.
        answer: how the answer ended; None before its end.
    """

    def __init__(
        self,
        request: InferenceRequest,
        begin: Callable[[], Awaitable[AsyncExchange]],
        route: Callable[[], Awaitable[Route]],
    ) -> None:
        self.request_id = request.request_id.hex()
        self.answer: Answer[Awaitable[Route]] | None = None
        self._begin = begin
        self._route = route
        self._gathering = Gathering(request)
        self._exchange: AsyncExchange | None = None
        self._began_s: float | None = None
        self._closed = False

    async def route(self) -> Route:
        """Who answers and why; known from the first piece on."""
        return await self._route()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        try:
            if self._exchange is None and not self._closed and self._began_s is None:
                self._began_s = time.perf_counter()
                self._exchange = await self._begin()
            while self._exchange is not None:
                reply = await self._exchange.next_reply()
                if self._gathering.take(reply):
                    assert self._began_s is not None, "an answer has a beginning"
                    self.answer = self._gathering.answer(time.perf_counter() - self._began_s, self._route)
                    self._let_go()
                elif piece := text_of(reply):
                    return piece
        except BaseException:
            self._let_go()
            raise
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop; an answer that has not ended is cancelled at the node."""
        self._closed = True
        self._let_go()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self._let_go()

    def _let_go(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.close()


class Text:
    """Iterate over it with `for`; use it as a context manager where the iteration may stop early.

    Attributes:
        request_id: in hexadecimal digits, as `isochrone explain` takes it.
        answer: how the answer ended; None before its end.
    """

    def __init__(self, request: InferenceRequest, begin: Callable[[], Exchange], route: Callable[[], Route]) -> None:
        self.request_id = request.request_id.hex()
        self.answer: Answer[Route] | None = None
        self._begin = begin
        self._route = route
        self._gathering = Gathering(request)
        self._exchange: Exchange | None = None
        self._began_s: float | None = None
        self._closed = False

    def route(self) -> Route:
        """Who answers and why; known from the first piece on."""
        return self._route()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            if self._exchange is None and not self._closed and self._began_s is None:
                self._began_s = time.perf_counter()
                self._exchange = self._begin()
            while self._exchange is not None:
                reply = self._exchange.next_reply()
                if self._gathering.take(reply):
                    assert self._began_s is not None, "an answer has a beginning"
                    self.answer = self._gathering.answer(time.perf_counter() - self._began_s, self._route)
                    self.close()
                elif piece := text_of(reply):
                    return piece
        except BaseException:
            self.close()
            raise
        raise StopIteration

    def close(self) -> None:
        """Stop; an answer that has not ended is cancelled at the node."""
        self._closed = True
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
