"""Inference of the scripted peer: requests made by hand, answers read in their order, and models that it claims to serve.

Spec: docs/spec/06-inference.md.
"""

import json
import os
from dataclasses import dataclass

import trio

from mesh.conformance.gossip import LIFETIME_S, Gossip, Scribe, card_of, talk
from mesh.conformance.peer import SERVED, ScriptedPeer
from mesh.conformance.registry import NotApplicable, Unmet
from mesh.conformance.wire import Connection, Stream
from protocol.encoding import encode_frame
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.gossip.beats import encode_beat
from protocol.gossip.messages import BeatTold, Keep
from protocol.inference import AnswerOrder, Failed, Feature, Finished, Reply
from protocol.load import Beat, ModelLoad
from protocol.records import ModelOffer
from protocol.wire.generated.layouts import REQUEST
from protocol.wire.inference import PROTOCOL_ID as INFER_PROTOCOL
from protocol.wire.inference import REPLY_BYTES_MAX, REQUEST_BYTES_MAX, decode_reply, encode_reply
from protocol.wire.layout import MessageLayout
from protocol.wire.writer import write_message

DEADLINE_S = 5.0
"""Deadline of requests in seconds, where a case says nothing else."""

WORDS = "one two three"
"""What models are asked."""

ID, FEATURE, MODEL, BODY, TENSORS, DEADLINE, HOPS, STREAM, MEMORY, TOKENS, RECEIPT = range(11)
"""The places of the fields of a request."""


def _lax(layout: MessageLayout) -> MessageLayout:
    """The same layout without bounds, to write what a reader must refuse."""
    tables = tuple(
        table._replace(fields=tuple(field._replace(length_max=2**32 - 1, item_length_max=2**32 - 1) for field in table.fields))
        for table in layout.tables
    )
    return layout._replace(tables=tables)


LAX_REQUEST = _lax(REQUEST)
"""How requests are written: everything that the format can hold."""


def fields(name: str, **changes: object) -> list[object]:
    """The fields of a chat request in their order, some of them changed by the names of their places."""
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": WORDS}], "max_tokens": 8}).encode()
    made: list[object] = [os.urandom(16), 1, name, body, [], int(DEADLINE_S * 1e6), 1, False, 0, 0, False]
    places = {"id": ID, "feature": FEATURE, "model": MODEL, "body": BODY, "tensors": TENSORS, "deadline_us": DEADLINE}
    places |= {"hops_left": HOPS, "stream": STREAM, "memory_bytes": MEMORY, "output_tokens": TOKENS, "receipt": RECEIPT}
    for field, value in changes.items():
        made[places[field]] = value
    return made


def request(name: str, **changes: object) -> bytes:
    """Write a chat request, some of its fields changed."""
    return write_message(LAX_REQUEST, fields(name, **changes))


def plain_tensor(
    data: bytes = bytes(16), dtype: int = 11, shape: tuple[int, ...] = (2, 2), name: str = "x"
) -> tuple[object, ...]:
    """A tensor as a request holds it: four zeros of type f4, unless told otherwise."""
    return (name, dtype, shape, data)


def text_model(peer: ScriptedPeer) -> str:
    """The name of a model of the node that can chat.

    Raises:
        NotApplicable: it has none.
    """
    peer.needs_inference()
    offers = peer.subject.card.models if peer.subject.card is not None else ()
    for offer in offers:
        if Feature.CHAT in offer.features:
            return offer.model
    raise NotApplicable("the node offers no model that can chat")


def tensor_model(peer: ScriptedPeer) -> str:
    """The name of a model of the node that takes any tensors and gives them back.

    Raises:
        NotApplicable: it has none.
    """
    peer.needs_inference()
    offers = peer.subject.card.models if peer.subject.card is not None else ()
    for offer in offers:
        if Feature.TENSORS in offer.features and offer.engine == "echo":
            return offer.model
    raise NotApplicable("the node offers no echo of tensors")


async def begin(connection: Connection, message: bytes, *, end: bool = False) -> Stream:
    """Send one request."""
    stream = await connection.speak(INFER_PROTOCOL)
    stream.send(encode_frame(message), end=end)
    return stream


async def answer(stream: Stream, what: str = "an answer", within_s: float | None = None) -> list[Reply]:
    """Read a whole answer: its events in their order, and the end of the stream behind them.

    Raises:
        Unmet: it is none.
    """
    order, replies = AnswerOrder(), list[Reply]()
    try:
        while not order.ended:
            reply = decode_reply(await stream.frame(REPLY_BYTES_MAX, what, within_s))
            order.take(reply)
            replies.append(reply)
    except RemoteProtocolError as fault:
        raise Unmet(f"{what} by the rules of chapter 6", fault) from fault
    await stream.until(lambda: stream.ended, f"the stream's end behind {what}")
    if stream.data:
        raise Unmet(f"nothing behind {what}", bytes(stream.data[:40]))
    return replies


async def refused(peer: ScriptedPeer, message: bytes, code: ErrorCode, what: str, connection: Connection | None = None) -> Failed:
    """Send one request and see that it is refused with a code, in one `Failed`.

    Raises:
        Unmet: it is not.
    """
    connection = connection or await peer.dial()
    replies = await answer(await begin(connection, message), f"the answer to {what}")
    last = replies[-1]
    if len(replies) != 1 or not isinstance(last, Failed) or last.code is not code:
        raise Unmet(f"one Failed with {code.name} for {what}", replies)
    return last


def outcome(replies: list[Reply]) -> ErrorCode:
    """The code with which an answer ended; `NO_ERROR` for one that finished."""
    last = replies[-1]
    assert isinstance(last, Finished | Failed)
    return last.code if isinstance(last, Failed) else ErrorCode.NO_ERROR


@dataclass(slots=True)
class Server:
    """A scripted peer that claims to serve a model."""

    gossip: Gossip

    @property
    def connection(self) -> Connection:
        """Its connection to the node."""
        return self.gossip.connection

    @property
    def streams(self) -> list[Stream]:
        """The requests that the node has sent it."""
        return self.connection.of(INFER_PROTOCOL)

    async def asked(self, number: int = 1, within_s: float | None = None) -> tuple[Stream, bytes]:
        """Wait for a request of the node and return its stream and its message."""
        await self.connection.until(
            lambda: len(self.streams) >= number or self.connection.end, "a request passed on by the node", within_s
        )
        if len(self.streams) < number:
            raise Unmet("a request passed on by the node", self.connection.end)
        stream = self.streams[number - 1]
        return stream, await stream.frame(REQUEST_BYTES_MAX, "a whole request of the node")


@dataclass(slots=True)
class Relay:
    """Somebody who asks the node for a model that only scripted peers claim to serve."""

    model: str
    asker: Connection
    servers: list[Server]

    async def ask(self, **changes: object) -> Stream:
        """Ask the node."""
        return await begin(self.asker, request(self.model, **changes))


async def relay(peer: ScriptedPeer, count: int = 1) -> Relay:
    """Have the node know scripted peers that claim a model, and somebody who asks for it.

    Raises:
        NotApplicable: the node is no member of a mesh, or answers no requests.
    """
    peer.needs_gossip()
    peer.needs_inference()
    model = f"conformance-{os.urandom(4).hex()}"
    servers = []
    for _ in range(count):
        identity = peer.stranger()
        connection = await peer.dial(identity=identity, served=(*SERVED, INFER_PROTOCOL))
        gossip = await talk(peer, identity, connection=connection, settle=False)
        offer = ModelOffer(model, frozenset({Feature.CHAT}))
        gossip.send_records(Scribe(identity, peer.subject).seal(card_of(models=[offer]), lasts_s=LIFETIME_S))
        load = ModelLoad(model, 0, 0, 4, 0.0, 0.0)
        gossip.send(Keep(True), BeatTold(encode_beat(Beat(draining=False, loads=(load,)))))
        await gossip.settled()
        await connection.until(lambda connection=connection: connection.frames, "a probe of the node")  # type: ignore[misc]
        servers.append(Server(gossip))
    await trio.sleep(peer.subject.rtt_s)  # the echo has reached the node by then
    return Relay(model, await peer.dial(identity=peer.stranger()), servers)


def reply_frame(*replies: Reply) -> bytes:
    """Events of an answer as they travel."""
    return b"".join(encode_frame(encode_reply(reply)) for reply in replies)
