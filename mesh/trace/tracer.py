"""Traces of connections: what a node tells whoever watches one of its peers.

A trace holds what was seen until it is read. A reader that falls behind loses the oldest and is told how many; the node itself
waits for nobody.

Spec: docs/trace.md.
"""

from collections import deque
from collections.abc import Generator, Iterable
from contextlib import contextmanager

import trio

from mesh.trace.frames import Json, Judge, describe, describe_datagram
from mesh.transport import Doing, Seen, Transport
from protocol.errors import ErrorCode
from protocol.identity import PeerId, peer_id_text

HELD_MAX = 4096
"""Events held for a slow reader, a count: some seconds of a busy answer, about two megabytes."""

TRACES_MAX = 4
"""Traces at a time, a count: each costs the decoding of every frame of its peer."""

NAME_CHARACTERS_MIN = 4
"""Fewest characters of a peer id that name it: fewer are a slip of the finger."""


class TraceRefusedError(Exception):
    """A trace cannot begin; the text says why and what to do."""


class Trace:
    """One reader's view of the connections of one peer."""

    def __init__(self, peer_id: PeerId, started_at: float, *, content: bool, judge: Judge | None = None) -> None:
        self.peer_id = peer_id
        self._started_at = started_at
        self._content = content
        self._judge = judge
        self._held: deque[Json] = deque()
        self._n_lost = 0
        self._ready = trio.Event()

    def saw(self, seen: Seen) -> None:
        """Take one event, as the transport tells it."""
        if len(self._held) >= HELD_MAX:
            self._held.popleft()
            self._n_lost += 1
        self._held.append(self._told(seen))
        self._ready.set()

    async def take(self, patience_s: float) -> list[Json]:
        """Wait up to `patience_s` seconds and return what was seen since the last call."""
        with trio.move_on_after(patience_s):
            await self._ready.wait()
        self._ready = trio.Event()
        events = list(self._held)
        self._held.clear()
        if self._n_lost:
            events.insert(0, {"what": "lost", "count": self._n_lost})
            self._n_lost = 0
        return events

    def _told(self, seen: Seen) -> Json:
        told: Json = {"t_s": round(seen.at_s - self._started_at, 6), "what": str(seen.doing), "sent": seen.sent}
        if seen.stream_id is not None:
            told |= {"stream": seen.stream_id, "protocol": seen.protocol_id}
        match seen.doing:
            case Doing.FRAME:
                judge = None if seen.sent else self._judge
                frame = describe(seen.protocol_id, seen.data, by_opener=seen.by_opener, content=self._content, judge=judge)
                told |= {"bytes": len(seen.data), "frame": frame}
            case Doing.DATAGRAM:
                told |= {"bytes": len(seen.data), "frame": describe_datagram(seen.data)}
            case Doing.RESET | Doing.STOPPED:
                told["code"] = _code_name(seen.code)
            case Doing.CLOSED:
                told |= {"code": _code_name(seen.code), "reason": seen.reason}
            case Doing.CONNECTED:
                told["remote"] = seen.reason
            case _:
                pass
        return told


@contextmanager
def trace_peer(
    transport: Transport,
    name: str,
    known: Iterable[PeerId],
    running: list[Trace],
    *,
    content: bool,
    judge: Judge | None = None,
) -> Generator[Trace]:
    """Watch the connections of a peer until the block ends; the first event tells the connection that there is.

    Args:
        transport: whose connections.
        name: a whole peer id, or its last characters.
        known: peers that may be named by their last characters.
        running: all traces of the node; this one is among them while it runs.
        content: whether prompts and answers are told too.
        judge: says of records that come why they are no news.

    Raises:
        TraceRefusedError: nobody or more than one has the name, or too many traces run.
    """
    if len(running) >= TRACES_MAX:
        raise TraceRefusedError(f"{TRACES_MAX} traces run already; end one of them first")
    peer_id = find_peer(name, known)
    trace = Trace(peer_id, transport.now(), content=content, judge=judge)
    connection = transport.connections.get(peer_id)
    if connection is not None:
        remote = str(connection.remote)
        trace.saw(Seen(transport.now(), Doing.CONNECTED, sent=connection.is_dialled, reason=remote))
    running.append(trace)
    try:
        with transport.watch(peer_id, trace.saw):
            yield trace
    finally:
        running.remove(trace)


def find_peer(name: str, known: Iterable[PeerId]) -> PeerId:
    """Return the one known peer whose id is `name` or ends with it.

    Raises:
        TraceRefusedError: there is none, or more than one.
    """
    wanted = name.removeprefix("…")
    if len(wanted) < NAME_CHARACTERS_MIN:
        raise TraceRefusedError(f"{name!r} is too short for a peer id; give at least its last {NAME_CHARACTERS_MIN} characters")
    found = [peer_id for peer_id in dict.fromkeys(known) if peer_id_text(peer_id).endswith(wanted)]
    if not found:
        raise TraceRefusedError(f"no peer's id ends with {wanted!r}; `isochrone peers` shows those that are known")
    if len(found) > 1:
        raise TraceRefusedError(f"the ids of {len(found)} peers end with {wanted!r}; give more of it")
    return found[0]


def _code_name(code: int) -> str:
    try:
        return ErrorCode(code).name
    except ValueError:
        return f"{code:#x}"
