"""What the fuzzers begin with: good and bad inputs of every kind, from the vectors of the specification and by hand."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protocol import encoding
from protocol.identity import Identity, make_certificate
from protocol.libp2p.multistream import Initiator
from protocol.wire import PackingLimits, pack, unpack

WALL_S = 1_800_000_000.0
AUTHOR = Identity.from_seed(bytes([7]) * 32)
WIDE = PackingLimits(size_bytes_max=1 << 20, depth_max=64, values_max=100_000)
VECTORS = Path(__file__).resolve().parents[2] / "docs" / "spec" / "vectors"


def vectors(name: str) -> dict[str, Any]:
    """A file of the specification's vectors."""
    told: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_text())
    return told


def some(*names: str) -> Callable[[], list[bytes]]:
    """Texts as bytes."""
    return lambda: [name.encode() for name in names]


def of_records() -> list[bytes]:
    """Envelopes of the vectors as they are, and their payloads."""
    told = vectors("records")
    seeds = [b"\x00" + bytes.fromhex(row["envelope"]) for row in told["valid"] + told["invalid"]]
    for row in told["valid"]:
        header = unpack(bytes.fromhex(row["envelope"])[64:], WIDE)
        assert isinstance(header, list)
        which = {"card": 1, "edges": 2, "verdict": 3}[row["kind"]]
        seeds.append(bytes([which]) + bytes(header[6]))  # type: ignore[arg-type]
    by_tag = {row["edge"][:10]: bytes.fromhex(row["edge"]) for row in vectors("coordinates")["edges"]}
    measured = b"".join(edge for _, edge in sorted(by_tag.items()))
    forms = (measured, measured[:9] * 2, measured[:-1], measured[:5] + bytes(4))
    return seeds + [b"\x02" + pack({"edges": [], "measured": form}, WIDE) for form in forms]


def of(name: str, *lists: str, field: str) -> Callable[[], list[bytes]]:
    """One field of every row of some lists of the vectors."""
    return lambda: [bytes.fromhex(row[field]) for which in lists for row in vectors(name)[which]]


def with_choice(seeds: Callable[[], list[bytes]], *choices: int) -> Callable[[], list[bytes]]:
    """Every seed behind every choice."""
    return lambda: [bytes([choice]) + seed for seed in seeds() for choice in choices]


def of_identify() -> list[bytes]:
    """Identify streams, from the vectors and by hand."""
    told = vectors("identity")
    found = [value for part in ("identify", "identify_push", "identify_with_path") for value in told[part].values()]
    seeds = [bytes.fromhex(value) for value in found if isinstance(value, str) and _is_hex(value)]
    return seeds + [encoding.encode_frame(seed) for seed in seeds]


def _is_hex(text: str) -> bool:
    try:
        bytes.fromhex(text)
    except ValueError:
        return False
    return True


def of_peer_records() -> list[bytes]:
    """Envelopes as they are, and payloads."""
    told = [
        bytes.fromhex(value) for value in vectors("identity")["peer_record"].values() if isinstance(value, str) and _is_hex(value)
    ]
    return [bytes([which]) + seed for seed in told for which in (0, 1)]


def of_multistream() -> list[bytes]:
    """Negotiations."""
    said = Initiator(("/a/1.0.0",)).data_to_send()
    answer = (
        encoding.encode_frame(b"/multistream/1.0.0\n") + encoding.encode_frame(b"na\n") + encoding.encode_frame(b"/b/1.0.0\n")
    )
    return [b"\x00" + said, b"\x01" + answer, b"\x02" + answer, b"\x00" + said[:20] + encoding.encode_frame(b"/no\n") * 20]


def of_certificates() -> list[bytes]:
    """Certificates, good and bad."""
    told = [bytes.fromhex(row["der"]) for row in vectors("identity")["certificates"]]
    return [*told, make_certificate(AUTHOR, bytes(32), WALL_S).der]


CHAT_BODY = (
    b'{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}],'
    b'"stream":true,"n":2,"stop":["a"],"seed":1}'
)
EMBED_BODY = b'{"model":"m","input":["a",[1,2]],"encoding_format":"base64","dimensions":8}'
CHUNK = (
    b'{"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
)


def of_bodies() -> list[bytes]:
    """Bodies of all kinds, and those that have hurt others."""
    odd = [
        b"[" * 5000,
        b'{"a":' * 3000,
        b'{"n":' + b"9" * 5000 + b"}",
        b'{"temperature":1e999}',
        b'{"model":"\\ud800"}',
        b"\xff{}",
    ]
    bodies = [CHAT_BODY, EMBED_BODY, b'{"model":"m","prompt":"hi","max_tokens":5}', b'{"input":"a"}', b'{"messages":[]}', *odd]
    return [bytes([which]) + body for body in bodies for which in range(4)]


def of_answers() -> list[bytes]:
    """What engines say."""
    event = b"data: " + CHUNK + b"\n\n"
    return [
        b"\x00" + CHUNK,
        b"\x01" + b'{"index":1,"delta":{}}',
        b"\x02" + event * 3 + b"data: [DONE]\r\n\r\n",
        b"\x02: x\r" + event,
    ]


def of_traces() -> list[bytes]:
    """Frames of every protocol, from either end."""
    told = [bytes.fromhex(row["message"]) for row in vectors("gossip")["valid"][:12]]
    rows = vectors("inference")
    asked = [bytes.fromhex(row["message"]) for row in rows["requests"][:3]]
    answered = [bytes.fromhex(row["message"]) for row in rows["replies"]]
    rpcs = [bytes.fromhex(row["rpc"]) for row in vectors("pubsub")["rpcs"]]
    seeds = [bytes([0]) + seed for seed in told] + [bytes([2]) + seed for seed in rpcs] + [bytes([4]) + seed for seed in asked]
    return (
        seeds
        + [bytes([5]) + seed for seed in answered]
        + [bytes([6]) + bytes(32)]
        + [bytes([8]) + seed for seed in of_identify()]
    )


def of_gossip() -> list[bytes]:
    """Messages, good and bad."""
    return of("gossip", "valid", "invalid", field="message")()


def of_beats() -> list[bytes]:
    """Beats inside messages of gossip."""
    found = [unpack(bytes.fromhex(row["message"]), WIDE) for row in vectors("gossip")["valid"]]
    return [bytes(value[1]) for value in found if isinstance(value, list) and value[0] == 8]  # type: ignore[arg-type]


def of_multiaddrs() -> list[bytes]:
    """Binary multiaddrs, good and bad."""
    told = vectors("identity")
    return [bytes.fromhex(row["hex"]) for row in told["multiaddrs"] + told["invalid_multiaddr_bytes"]]


def of_keys() -> list[bytes]:
    """Public keys and peer ids."""
    told = vectors("identity")
    rows = told["keys"] + told["identities"]
    return [bytes.fromhex(row["public_key_message"]) for row in rows] + [AUTHOR.public_key + AUTHOR.sign(b"said") + b"said"]


def of_places() -> list[bytes]:
    """Places."""
    return [bytes.fromhex(row["place"]) for row in vectors("coordinates")["places"]]


def grown(data: bytes, bytes_max: int, seed: int) -> bytes:
    """Repeat a piece of the input, for what is dear is often a small thing that comes often."""
    luck = random.Random(seed)
    if not data:
        return luck.randbytes(min(bytes_max, 8))
    start = luck.randrange(len(data))
    piece = data[start : start + 1 + luck.randrange(min(64, len(data)))]
    times = luck.choice((2, 16, 256, 4096))
    return (data[:start] + piece * times + data[start:])[:bytes_max]
