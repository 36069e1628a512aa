"""Every vector of docs/spec/vectors/fabric.json."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import messages
from protocol.fabric.adverts import Advert, Closeness, GpuPath, Port, decode_advert, encode_advert, host_tag
from protocol.fabric.matching import Match, matches
from protocol.fabric.values import Kind, Lease, Place, Rights

VECTORS = json.loads((Path(__file__).parents[2] / "docs" / "spec" / "vectors" / "fabric.json").read_text())
WORDS = {word.__name__.lower(): word for word in messages.Message.__args__}


def name_of(vector: dict) -> str:
    return vector["name"].replace(" ", "-")


def raw(vector: dict, name: str) -> bytes:
    return bytes.fromhex(vector[name])


def lease_of(told: dict) -> Lease:
    numbers = (told["region"], told["epoch"], told["offset"], told["length"])
    return Lease(*numbers, Rights(told["rights"]), told["lifetime_ms"] / 1e3, raw(told, "key"))


def message_of(told: dict | None) -> messages.Message | None:
    match told:
        case None:
            return None
        case {"word": "offer"}:
            places = tuple(Place(t["name"], t["dtype"], tuple(t["shape"]), t["offset"], t["length"]) for t in told["tensors"])
            lease = None if told["lease"] is None else lease_of(told["lease"])
            return messages.Offer(told["transfer"], Kind(told["kind"]), places, lease, raw(told, "tag"))
        case {"word": "leased"}:
            return messages.Leased(told["transfer"], lease_of(told["lease"]))
        case {"word": "placed"}:
            return messages.Placed(told["transfer"], raw(told, "tag"))
        case {"word": "refused"}:
            return messages.Refused(told["transfer"], ErrorCode[told["code"]], told["detail"])
        case _:
            return WORDS[told["word"]](told["transfer"])


def advert_of(told: dict) -> Advert:
    return Advert(
        raw(told, "host"),
        tuple(Port(bytes.fromhex(gid), bits, speed) for gid, bits, speed in told["rdma"]),
        tuple(map(bytes.fromhex, told["cxl"])),
        tuple(GpuPath(gpu, port, Closeness(closeness)) for gpu, port, closeness in told["gpu"]),
    )


@pytest.mark.parametrize("vector", VECTORS["messages"], ids=name_of)
def test_messages(vector: dict) -> None:
    message = message_of(vector["message"])
    assert message is not None
    assert messages.encode_message(message) == raw(vector, "bytes")
    assert messages.decode_message(raw(vector, "bytes")) == message


@pytest.mark.parametrize("vector", VECTORS["later_messages"], ids=name_of)
def test_messages_of_a_later_version(vector: dict) -> None:
    assert messages.decode_message(raw(vector, "bytes")) == message_of(vector["message"])


@pytest.mark.parametrize("vector", VECTORS["hellos"], ids=name_of)
def test_hellos(vector: dict) -> None:
    hello = messages.Hello(tuple(vector["kinds"]), raw(vector, "nonce"))
    assert messages.encode_hello(hello) == raw(vector, "bytes")
    assert messages.decode_hello(raw(vector, "bytes")) == hello


@pytest.mark.parametrize("vector", VECTORS["openings"], ids=name_of)
def test_openings(vector: dict) -> None:
    told: messages.Door | messages.Shut
    if "kind" in vector:
        told = messages.Door(Kind(vector["kind"]), raw(vector, "place"), raw(vector, "secret"), raw(vector, "nonce"))
    else:
        told = messages.Shut(ErrorCode[vector["code"]], vector["detail"])
    assert messages.encode_opening(told) == raw(vector, "bytes")
    assert messages.decode_opening(raw(vector, "bytes")) == told


@pytest.mark.parametrize("vector", VECTORS["adverts"], ids=name_of)
def test_adverts(vector: dict) -> None:
    assert encode_advert(advert_of(vector["advert"])) == raw(vector, "bytes")
    assert decode_advert(raw(vector, "bytes")) == advert_of(vector["advert"])


@pytest.mark.parametrize("vector", VECTORS["host_tags"], ids=lambda vector: vector["tag"][:8])
def test_host_tags(vector: dict) -> None:
    assert host_tag(raw(vector, "secret"), vector["network"]) == raw(vector, "tag")


@pytest.mark.parametrize("vector", VECTORS["matches"], ids=name_of)
def test_matching(vector: dict) -> None:
    expected = tuple(
        Match(Kind(m["kind"]), raw(m, "pool"), m["own_port"], m["their_port"], m["speed_mbps"]) for m in vector["matches"]
    )
    assert matches(advert_of(vector["own"]), advert_of(vector["other"])) == expected


READERS: dict[str, Callable[[bytes], object]] = {
    "invalid_messages": messages.decode_message,
    "invalid_hellos": messages.decode_hello,
    "invalid_openings": messages.decode_opening,
    "invalid_adverts": decode_advert,
}
REFUSED = [pytest.param(kind, vector, id=f"{kind}-{name_of(vector)}") for kind in READERS for vector in VECTORS[kind]]


@pytest.mark.parametrize(("kind", "vector"), REFUSED)
def test_what_is_refused(kind: str, vector: dict) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        READERS[kind](raw(vector, "bytes"))
    assert caught.value.code is ErrorCode[vector["code"]]
