"""Every vector of docs/spec/vectors/fabric.json."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import gpu, messages, pools
from protocol.fabric.adverts import Advert, Closeness, GpuPath, Port, decode_advert, encode_advert, gpu_tag, host_tag
from protocol.fabric.matching import Match, matches
from protocol.fabric.rdma import End, decode_end, encode_end, keyed_tag, tag_key
from protocol.fabric.tags import check_tag, tag_of
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
            on_device = told.get("on_device", False)
            return messages.Offer(told["transfer"], Kind(told["kind"]), places, lease, raw(told, "tag"), on_device)
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
        tuple(GpuPath(place, port, Closeness(closeness)) for place, port, closeness in told["gpu"]),
        tuple(map(bytes.fromhex, told.get("cuda", []))),
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
    ports = tuple(vector["ports"]) if "ports" in vector else None
    hello = messages.Hello(tuple(vector["kinds"]), raw(vector, "nonce"), ports)
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


@pytest.mark.parametrize("vector", VECTORS["gpu_tags"], ids=lambda vector: vector["tag"][:8])
def test_tags_of_gpus(vector: dict) -> None:
    assert gpu_tag(raw(vector, "secret"), vector["network"], raw(vector, "uuid")) == raw(vector, "tag")


GPU_WORDS = {word.__name__.lower(): word for word in gpu.Word.__args__}


@pytest.mark.parametrize("vector", VECTORS["gpu_words"], ids=name_of)
def test_words_about_gpu_memory(vector: dict) -> None:
    word = GPU_WORDS[vector["word"]](*vector["numbers"])
    assert gpu.encode_word(word) == raw(vector, "bytes")
    assert gpu.decode_word(raw(vector, "bytes")) == word


@pytest.mark.parametrize("vector", VECTORS["later_gpu_words"], ids=name_of)
def test_words_about_gpu_memory_of_a_later_version(vector: dict) -> None:
    assert gpu.decode_word(raw(vector, "bytes")) is None


@pytest.mark.parametrize("vector", VECTORS["matches"], ids=name_of)
def test_matching(vector: dict) -> None:
    expected = tuple(
        Match(Kind(m["kind"]), raw(m, "pool"), m["own_port"], m["their_port"], m["speed_mbps"], bytes.fromhex(m.get("gpu", "")))
        for m in vector["matches"]
    )
    assert matches(advert_of(vector["own"]), advert_of(vector["other"])) == expected


@pytest.mark.parametrize("vector", VECTORS["rdma_ends"], ids=name_of)
def test_rdma_ends(vector: dict) -> None:
    end = End(raw(vector, "gid"), vector["qpn"], vector["psn"], vector["mtu"], vector["lid"])
    assert encode_end(end) == raw(vector, "bytes")
    assert decode_end(raw(vector, "bytes")) == end


@pytest.mark.parametrize("vector", VECTORS["rdma_tags"], ids=name_of)
def test_rdma_tags(vector: dict) -> None:
    key = tag_key(raw(vector, "secret"), raw(vector, "opener_nonce"), raw(vector, "door_nonce"))
    assert keyed_tag(key, [memoryview(bytes.fromhex(tensor)) for tensor in vector["tensors"]]) == raw(vector, "tag")


READERS: dict[str, Callable[[bytes], object]] = {
    "invalid_messages": messages.decode_message,
    "invalid_hellos": messages.decode_hello,
    "invalid_openings": messages.decode_opening,
    "invalid_adverts": decode_advert,
    "invalid_rdma_ends": decode_end,
    "invalid_gpu_words": gpu.decode_word,
}
REFUSED = [pytest.param(kind, vector, id=f"{kind}-{name_of(vector)}") for kind in READERS for vector in VECTORS[kind]]


@pytest.mark.parametrize(("kind", "vector"), REFUSED)
def test_what_is_refused(kind: str, vector: dict) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        READERS[kind](raw(vector, "bytes"))
    assert caught.value.code is ErrorCode[vector["code"]]


@pytest.mark.parametrize("vector", VECTORS["pools"], ids=name_of)
def test_pools(vector: dict) -> None:
    told = (vector["size_bytes"], vector["slab_bytes"], vector["slots"])
    layout = pools.lay_out(raw(vector, "pool_id"), pools.PoolFlags(vector["flags"]), *told)
    assert pools.encode_superblock(layout) == raw(vector, "bytes")
    assert pools.decode_superblock(raw(vector, "bytes"), vector["size_bytes"]) == layout
    found = (layout.bits_bytes, layout.slot_bytes, layout.slabs_at, layout.slabs)
    assert found == tuple(vector[name] for name in ("bits_bytes", "slot_bytes", "slabs_at", "slabs"))


@pytest.mark.parametrize("vector", VECTORS["invalid_pools"], ids=name_of)
def test_what_is_no_pool(vector: dict) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        pools.decode_superblock(raw(vector, "bytes"), vector["size_bytes"])
    assert caught.value.code is ErrorCode[vector["code"]]


@pytest.mark.parametrize("vector", VECTORS["slots"], ids=name_of)
def test_slots(vector: dict) -> None:
    head = pools.SlotHead(pools.SlotState(vector["state"]), vector["epoch"], raw(vector, "nonce"))
    assert pools.decode_slot(raw(vector, "bytes")) == head
    if head.epoch:
        assert pools.encode_slot(head) == raw(vector, "bytes")


@pytest.mark.parametrize("vector", VECTORS["regions"], ids=name_of)
def test_regions(vector: dict) -> None:
    head = pools.RegionHead(*(vector[name] for name in ("slot", "owner_epoch", "region", "epoch", "length")))
    assert pools.encode_region(head) == raw(vector, "bytes")
    assert pools.decode_region(raw(vector, "bytes")) == head


@pytest.mark.parametrize("vector", VECTORS["tokens"], ids=name_of)
def test_tokens(vector: dict) -> None:
    token = pools.Token(raw(vector, "pool_id"), vector["slot"], vector["epoch"], raw(vector, "nonce"))
    layout = pools.lay_out(token.pool_id, pools.PoolFlags(0), 1 << 30, 1 << 16)
    assert pools.encode_token(token) == raw(vector, "bytes")
    assert pools.decode_token(raw(vector, "bytes"), layout) == token


@pytest.mark.parametrize("vector", VECTORS["lease_keys"], ids=name_of)
def test_keys_of_leases(vector: dict) -> None:
    layout = pools.lay_out(bytes(16), pools.PoolFlags(0), 1 << 30, 1 << 16)
    assert pools.encode_place(vector["first"], vector["count"]) == raw(vector, "bytes")
    assert pools.decode_place(raw(vector, "bytes"), layout) == (vector["first"], vector["count"])


@pytest.mark.parametrize("vector", VECTORS["pool_words"], ids=name_of)
def test_words_of_pools(vector: dict) -> None:
    word = {
        "enter": lambda told: pools.Enter(raw(told, "token")),
        "entered": lambda _told: pools.Entered(),
        "released": lambda told: pools.LeaseReleased(told["region"], told["epoch"]),
        "hidden": lambda told: pools.Hidden(told["region"]),
    }[vector["word"]](vector)
    assert pools.encode_word(word) == raw(vector, "bytes")
    assert pools.decode_word(raw(vector, "bytes")) == word


@pytest.mark.parametrize("vector", VECTORS["invalid_pool_words"], ids=name_of)
def test_what_is_no_word_of_a_pool(vector: dict) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        pools.decode_word(raw(vector, "bytes"))
    assert caught.value.code is ErrorCode[vector["code"]]


@pytest.mark.parametrize("vector", VECTORS["later_pool_words"], ids=name_of)
def test_later_words_of_pools_are_passed_over(vector: dict) -> None:
    assert pools.decode_word(raw(vector, "bytes")) is None


@pytest.mark.parametrize("vector", VECTORS["tags"], ids=name_of)
def test_tags(vector: dict) -> None:
    pieces = [bytes.fromhex(piece) for piece in vector["pieces"]]
    assert tag_of(pieces) == raw(vector, "tag")
    check_tag([b"".join(pieces)], raw(vector, "tag"))
