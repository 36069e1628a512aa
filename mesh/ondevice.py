"""Who gets tensors that lie on a device, and who gets them on the host.

A tensor stays on its device for as long as everybody on its way takes it there: an engine that says so, a fabric that reaches
the device, a reader who asked for it. For whoever does not, it is copied to the host, once, where the way parts; the device
counts it.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Self, TypeVar

from mesh.engines.base import AtOnce, Engine
from mesh.fabric.gpu import all_ready
from protocol.errors import ErrorCode
from protocol.inference import Failed, InferenceRequest, Reply, TensorsReady, are_on_host, on_host

R = TypeVar("R", bound=Reply)


def host_request(request: InferenceRequest) -> InferenceRequest:
    """A request whose tensors all lie on the host.

    Raises:
        OSError: the device fails.
    """
    return request if are_on_host(request.tensors) else replace(request, tensors=on_host(request.tensors))


def unread(error: OSError) -> Failed:
    """How an attempt fails for which tensors could not be brought from a device."""
    return Failed(ErrorCode.ENGINE_FAILED, f"a device cannot be read: {error}")


def signable(request: InferenceRequest) -> InferenceRequest:
    """A request whose bytes can be hashed, where it is to have a receipt; raises as `host_request`."""
    return replace(host_request(request), takes_device=False) if request.receipt else request


def for_engine(engine: object, request: InferenceRequest) -> InferenceRequest:
    """A request as an engine takes it; raises as `host_request`."""
    # by name: to ask by isinstance whether it is a TakesDevice takes as long as to decode a request
    return request if getattr(engine, "takes_device", False) else host_request(request)


def for_reader(request: InferenceRequest, reply: R) -> R:
    """A reply as whoever made a request takes it; raises as `host_request`."""
    if isinstance(reply, TensorsReady) and not request.takes_device and not are_on_host(reply.tensors):
        return replace(reply, tensors=on_host(reply.tensors))
    return reply


def at_once_on(engine: AtOnce, request: InferenceRequest) -> Iterator[Reply] | None:
    """What `answer_at_once` of an engine gives, lying where it may.

    Raises:
        OSError: the device fails, also where the replies are taken.
    """
    replies = engine.answer_at_once(for_engine(engine, request))
    if replies is None or not request.receipt:  # else who hands them on sees where they may lie (`for_reader`)
        return replies
    return (for_reader(request, reply) for reply in replies)


@asynccontextmanager
async def run_on(engine: Engine, request: InferenceRequest) -> AsyncIterator[AsyncIterator[Reply]]:
    """Answer a request by an engine, as `Engine.run` does; what comes has been computed, and lies where it may.

    Raises:
        OSError: the device fails.
    """
    async with engine.run(for_engine(engine, request)) as replies:
        yield _Computed(replies, request)


class _Computed:
    """Replies of an engine whose tensors are not still being computed."""

    __slots__ = ("_replies", "_request")

    def __init__(self, replies: AsyncIterator[Reply], request: InferenceRequest) -> None:
        self._replies = replies
        self._request = request

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Reply:
        reply = await self._replies.__anext__()
        if isinstance(reply, TensorsReady) and not are_on_host(reply.tensors):
            await all_ready(reply.tensors)
            return for_reader(self._request, reply)
        return reply
