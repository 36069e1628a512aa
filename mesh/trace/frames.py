"""What a frame says, as JSON: gossip, inference, ping, identify and probes.

What people ask models and what models answer is left out, and so is what tensors hold, unless content was asked for; their sizes
are told. A frame that does not decode is told with the code of its fault, as the node itself finds it. Lists of a frame are cut
after `LISTED_MAX`.

Spec: docs/trace.md, section "Frames".
"""

import base64
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from protocol.errors import RemoteProtocolError
from protocol.gossip import GOSSIP_PROTOCOL
from protocol.gossip.beats import decode_beat
from protocol.gossip.messages import (
    BeatTold,
    Digest,
    DontWant,
    Entries,
    Graft,
    Keep,
    Message,
    Prune,
    Records,
    ScopeTold,
    Seek,
    Want,
    decode_message,
)
from protocol.identity import peer_id_text
from protocol.inference import Accepted, Failed, Finished, JsonDelta, Reply, Tensor, TensorsReady, TextDelta
from protocol.libp2p.identify import IDENTIFY_PROTOCOL, IDENTIFY_PUSH_PROTOCOL, IdentifyReader, quic_addresses
from protocol.libp2p.ping import PING_PROTOCOL
from protocol.load import Beat
from protocol.places import decode_place
from protocol.probe import KIND_ECHO_THREE, decode_datagram
from protocol.pubsub.messages import decode_rpc
from protocol.records import peek
from protocol.sealing import (
    HEADER_BYTES_MAX,
    RELAY_PROTOCOL,
    SEALED_PROTOCOL,
    Begun,
    Chunk,
    Refused,
    decode_answer_frame,
    decode_header,
)
from protocol.wire.inference import PROTOCOL_ID as INFER_PROTOCOL
from protocol.wire.inference import decode_reply, decode_request

GOSSIP_PREFIX = GOSSIP_PROTOCOL.rpartition("/")[0] + "/"
"""What the ids of all versions of gossip begin with; what a version does not know it says so."""

PUBSUB_PREFIX = "/meshsub/"
"""What the ids of all versions of gossipsub begin with."""

LISTED_MAX = 16
"""Items of one list that are told, a count: they fill a screen, and a digest has 256."""

Json = dict[str, object]

_Item = TypeVar("_Item")


Judge = Callable[[bytes], str | None]
"""Says of a record's envelope why it is no news to this node, None where it is."""


def describe(protocol_id: str, data: bytes, *, by_opener: bool, content: bool, judge: Judge | None = None) -> Json:
    """Return what a frame of a stream says.

    Args:
        protocol_id: what the stream speaks.
        data: the frame without its length.
        by_opener: whether the end that opened the stream wrote it.
        content: whether prompts and answers are told too.
        judge: says of records why they are no news; None says nothing.
    """
    try:
        if protocol_id.startswith(GOSSIP_PREFIX):
            return _gossip(data, judge)
        if protocol_id.startswith(PUBSUB_PREFIX):
            return _rpc(data)
        if protocol_id == INFER_PROTOCOL:
            return _request(data, content=content) if by_opener else _reply(decode_reply(data), content=content)
        if protocol_id in (RELAY_PROTOCOL, SEALED_PROTOCOL):
            return _sealed(data, by_opener=by_opener)
        if protocol_id == PING_PROTOCOL:
            return {"type": "ping" if by_opener else "echo", "nonce": data[:8].hex()}
        if protocol_id in (IDENTIFY_PROTOCOL, IDENTIFY_PUSH_PROTOCOL):
            return _identify(data)
    except RemoteProtocolError as fault:
        return {"type": "undecodable", "code": fault.code.name, "detail": fault.detail}
    return {"type": "unknown"}


def _sealed(data: bytes, *, by_opener: bool) -> Json:
    """What a relay can read of a sealed request or its answer: the header, and the numbers of chunks."""
    if by_opener:
        if len(data) > HEADER_BYTES_MAX:
            return {"type": "sealed request"}
        header = decode_header(data)
        far_end = peer_id_text(header.far_end)
        return {"type": "relay header", "request_id": header.request_id.hex(), "hop": header.hop, "far_end": far_end}
    match decode_answer_frame(data):
        case Chunk(number, is_final):
            return {"type": "sealed chunk", "number": number, "final": is_final}
        case Refused(code):
            return {"type": "refused", "code": code.name}
        case Begun():
            return {"type": "sealed answer"}


def describe_datagram(data: bytes) -> Json:
    """Return what a datagram says: a probe, an echo or a third leg."""
    try:
        datagram = decode_datagram(data)
    except RemoteProtocolError as fault:
        return {"type": "undecodable", "code": fault.code.name, "detail": fault.detail}
    if datagram is None:
        return {"type": "unknown"}
    told: Json = {"type": _DATAGRAM_NAMES[datagram.kind - 1], "nonce": f"{datagram.nonce:016x}"}
    if datagram.kind == KIND_ECHO_THREE:
        told["own_nonce"] = f"{datagram.drawn:016x}"
    place = decode_place(datagram.place) if datagram.place else None
    if place is not None:
        told["vector_ms"] = [round(component * 1000, 3) for component in place.vector]
        told["height_ms"] = round(place.height_s * 1000, 3)
        told["error"] = round(place.error, 3)
    return told


_DATAGRAM_NAMES = ("probe", "echo", "probe of three legs", "echo of three legs", "third leg")
"""Of kinds 1 to 5, as chapter 5 of the specification calls them."""


def _gossip(data: bytes, judge: Judge | None) -> Json:
    message = decode_message(data)
    if message is None:
        return {"type": "unknown"}
    return {"type": _GOSSIP_NAMES[type(message)], **_gossip_fields(message, judge)}


def _rpc(data: bytes) -> Json:
    rpc = decode_rpc(data)
    told: Json = {"type": "rpc"}
    if rpc.subscriptions:
        told["subscriptions"] = _listed(rpc.subscriptions, lambda item: {"topic": item.topic, "subscribes": item.subscribes})
    if rpc.messages:
        told["messages"] = _listed(rpc.messages, lambda item: {"topic": item.topic, "id": item.id.hex(), "bytes": len(item.data)})
    if rpc.ihaves:
        told["have"] = _listed([name for ihave in rpc.ihaves for name in ihave.ids], bytes.hex)
    for name, ids in (("want", rpc.iwants), ("do_not_want", rpc.idontwants)):
        if ids:
            told[name] = _listed(ids, bytes.hex)
    for name, topics in (("graft", rpc.grafts), ("prune", [prune.topic for prune in rpc.prunes])):
        if topics:
            told[name] = _listed(topics, str)
    return told


_GOSSIP_NAMES: dict[type, str] = {
    Records: "records",
    Digest: "digest",
    Entries: "entries",
    Want: "want",
    Graft: "graft",
    Prune: "prune",
    DontWant: "do not want",
    BeatTold: "beat",
    Keep: "keep",
    ScopeTold: "scope",
    Seek: "seek",
}
"""As chapter 4 of the specification calls them."""


def _gossip_fields(message: Message, judge: Judge | None) -> Json:
    match message:
        case Records(envelopes):
            return {"count": len(envelopes), "records": _listed(envelopes, partial(_record, judge=judge))}
        case Digest(hashes):
            return {"count": len(hashes), "hashes": _listed(hashes, bytes.hex)}
        case Entries(entries, buckets):
            return {"count": len(entries), "buckets": len(buckets), "entries": _listed(entries, _entry)}
        case DontWant(entries):
            return {"count": len(entries), "entries": _listed(entries, _entry)}
        case Want(keys):
            return {"count": len(keys), "keys": _listed(keys, bytes.hex)}
        case BeatTold(payload):
            return _beat(decode_beat(payload))
        case Keep(keeps, legs):
            return {"keeps": keeps, **({"legs": legs} if legs else {})}
        case ScopeTold(scope):
            if scope is None:
                return {"everything": True}
            return {"middle_ms": [round(part * 1000, 3) for part in scope.vector], "radius_ms": round(scope.radius_s * 1000, 3)}
        case Seek(model, count):
            return {"model": model, "count": count}
        case _:
            return {}


def _record(envelope: bytes, judge: Judge | None) -> Json:
    try:
        header = peek(envelope)
    except RemoteProtocolError as fault:
        return {"bytes": len(envelope), "undecodable": fault.code.name}
    stale = judge(envelope) if judge is not None else None
    return {
        "kind": str(header.kind),
        "signer": peer_id_text(header.peer_id),
        "sequence": header.sequence,
        "expires_s": header.expires_s,
        "bytes": len(envelope),
        **({} if stale is None else {"stale": stale}),
    }


def _entry(entry: tuple[bytes, int]) -> Json:
    key, sequence = entry
    return {"key": key.hex(), "sequence": sequence}


def _beat(beat: Beat) -> Json:
    loads = [
        {
            "model": load.model,
            "running": load.running,
            "waiting": load.waiting,
            "slots": load.slots,
            "queue_s": load.queue_s,
            "service_s": load.service_s,
        }
        for load in beat.loads[:LISTED_MAX]
    ]
    return {"draining": beat.draining, "loads": loads}


def _request(data: bytes, *, content: bool) -> Json:
    request = decode_request(data)
    told: Json = {
        "type": "request",
        "request_id": request.request_id.hex(),
        "feature": str(request.feature),
        "model": request.model,
        "deadline_s": request.deadline_s,
        "hops_left": request.hops_left,
        "stream": request.stream,
        "memory_bytes": request.memory_bytes,
        "output_tokens": request.output_tokens,
        "body_bytes": len(request.body),
        "tensors": [_tensor(tensor, content=content) for tensor in request.tensors],
    }
    if content:
        told["body"] = bytes(request.body).decode(errors="replace")
    return told


def _reply(reply: Reply, *, content: bool) -> Json:
    match reply:
        case Accepted(queue_s):
            return {"type": "accepted", "queue_s": queue_s}
        case TextDelta(text, index):
            return {"type": "text", "index": index, "text_bytes": len(text.encode())} | ({"text": text} if content else {})
        case JsonDelta(payload):
            told: Json = {"type": "json", "payload_bytes": len(payload)}
            return told | ({"payload": payload.decode(errors="replace")} if content else {})
        case TensorsReady(tensors):
            return {"type": "tensors", "tensors": [_tensor(tensor, content=content) for tensor in tensors]}
        case Finished(reasons, usage, timing):
            return {
                "type": "finished",
                "reasons": list(reasons),
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "queue_s": timing.queue_s,
                "service_s": timing.service_s,
            }
        case Failed(code, message, retry_after_s):
            # An engine's message may repeat what it was asked.
            told = {"type": "failed", "code": code.name, "message_bytes": len(message.encode()), "retry_after_s": retry_after_s}
            return told | ({"message": message} if content else {})


def _tensor(tensor: Tensor, *, content: bool) -> Json:
    told: Json = {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape), "bytes": tensor.data.nbytes}
    return told | ({"base64": base64.b64encode(tensor.data).decode()} if content else {})


def _identify(data: bytes) -> Json:
    reader = IdentifyReader()
    reader.receive_data(data)
    said = reader.receive_eof()
    return {
        "type": "identify",
        "agent": said.agent_version,
        "protocol_version": said.protocol_version,
        "protocols": list(said.protocols[:LISTED_MAX]),
        "addresses": [str(address) for address in quic_addresses(said.listen_addresses[:LISTED_MAX])],
        "observed": [str(address) for address in quic_addresses(filter(None, [said.observed_address]))],
        "signed_record": said.signed_peer_record is not None,
    }


def _listed(items: Sequence[_Item], tell: Callable[[_Item], object]) -> list[object]:
    return [tell(item) for item in items[:LISTED_MAX]]
