"""What a node says of its fabrics, who shares one, and what the host tag tells."""

from itertools import pairwise

import pytest
from fabric_strategies import adverts
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.fabric.adverts import (
    ADVERT_BYTES_MAX,
    GPUS_MAX,
    POOLS_MAX,
    PORTS_MAX,
    Advert,
    Closeness,
    GpuPath,
    Port,
    decode_advert,
    encode_advert,
    gpu_tag,
    host_tag,
)
from protocol.fabric.matching import FAR, Match, matches, order_pairs, port_for
from protocol.fabric.values import Kind
from protocol.records import Card, Hardware, RecordKind
from protocol.records.config import RecordConfig
from protocol.records.mapping import decode_payload, encode_payload
from protocol.wire import PackingLimits, pack

ROOMY = PackingLimits(size_bytes_max=1 << 16, depth_max=8, values_max=4096)


def gid(last: int, subnet: int = 1) -> bytes:
    return bytes([0xFE, 0x80, *bytes(5), subnet, *bytes(7), last])


def refused(plain: object) -> ErrorCode:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_advert(pack(plain, ROOMY))
    return caught.value.code


@given(adverts())
def test_an_advert_comes_back_as_it_went(advert):
    assert decode_advert(encode_advert(advert)) == advert


@given(st.binary(max_size=200))
def test_any_bytes_give_an_advert_or_the_one_declared_error(data):
    try:
        advert, code = decode_advert(data), ErrorCode.NO_ERROR
    except RemoteProtocolError as error:
        advert, code = Advert(), error.code
    assert code in (ErrorCode.NO_ERROR, ErrorCode.MALFORMED, ErrorCode.TOO_LARGE)
    assert decode_advert(encode_advert(advert)) == advert


def test_the_largest_advert_fits_a_card():
    full = Advert(
        bytes(16),
        tuple(Port(gid(n), 64, 2**32 - 1) for n in range(PORTS_MAX)),
        tuple(bytes([n]) * 16 for n in range(POOLS_MAX)),
        tuple(GpuPath(n, PORTS_MAX - 1, Closeness.SYSTEM) for n in range(GPUS_MAX)),
    )
    assert len(encode_advert(full)) <= ADVERT_BYTES_MAX
    assert decode_advert(encode_advert(full)) == full


@pytest.mark.parametrize(
    ("plain", "code"),
    [
        ([], ErrorCode.MALFORMED),
        ({"host": b"short"}, ErrorCode.MALFORMED),
        ({"host": "text"}, ErrorCode.MALFORMED),
        ({"rdma": {}}, ErrorCode.MALFORMED),
        ({"rdma": [[gid(1), 0, 1]]}, ErrorCode.MALFORMED),
        ({"rdma": [[gid(1), 129, 1]]}, ErrorCode.MALFORMED),
        ({"rdma": [[gid(1), True, 1]]}, ErrorCode.MALFORMED),
        ({"rdma": [[gid(1), 64, -1]]}, ErrorCode.MALFORMED),
        ({"rdma": [[gid(1)[1:], 64, 1]]}, ErrorCode.MALFORMED),
        ({"rdma": [[gid(1), 64, 1]] * 9}, ErrorCode.TOO_LARGE),
        ({"cxl": [b"short"]}, ErrorCode.MALFORMED),
        ({"cxl": [bytes(16)] * 5}, ErrorCode.TOO_LARGE),
        ({"gpu": [[0, 0, 1]]}, ErrorCode.MALFORMED),
        ({"gpu": [[0, 0, 1]] * 33}, ErrorCode.TOO_LARGE),
        ({"x": bytes(ADVERT_BYTES_MAX)}, ErrorCode.TOO_LARGE),
    ],
)
def test_what_is_no_advert_is_refused(plain, code):
    assert refused(plain) is code


def test_what_a_later_version_says_is_passed_over():
    told = {"host": bytes(16), "rdma": [[gid(1), 64, 100, "new"]], "gpu": [[0, 0, 9], [1, 0, 1, 7]], "photon": [1]}
    assert decode_advert(pack(told, ROOMY)) == Advert(bytes(16), (Port(gid(1), 64, 100),), (), (GpuPath(1, 0, Closeness.SWITCH),))


def test_a_card_carries_an_advert_and_does_without():
    config, hardware = RecordConfig(), Hardware("cpu", 1, 1, 1)
    advert = encode_advert(Advert(bytes(16)))
    card = Card((), hardware, (), None, "x", fabric=advert)
    assert decode_payload(RecordKind.CARD, encode_payload(card, config), config) == card
    bare = Card((), hardware, (), None, "x")
    assert b"fabric" not in encode_payload(bare, config)
    rubbish = Card((), hardware, (), None, "x", fabric=b"\xc1 no advert at all")
    assert decode_payload(RecordKind.CARD, encode_payload(rubbish, config), config) == rubbish, "it costs the card nothing"
    long = Card((), hardware, (), None, "x", fabric=bytes(config.fabric_bytes_max + 1))
    with pytest.raises(RemoteProtocolError):
        decode_payload(RecordKind.CARD, encode_payload(long, config), config)


def test_too_long_an_advert_is_the_callers_fault():
    with pytest.raises(LocalProtocolError):
        encode_advert(Advert(pools=(bytes(ADVERT_BYTES_MAX),)))


# The host tag


def test_a_host_has_another_tag_in_every_network_and_after_every_boot():
    boot, other_boot = bytes(range(16)), bytes(range(1, 17))
    assert host_tag(boot, "a") == host_tag(boot, "a")
    tags = {host_tag(boot, "a"), host_tag(boot, "b"), host_tag(other_boot, "a")}
    assert len(tags) == 3
    assert all(len(tag) == 16 for tag in tags)


def test_the_id_of_a_gpu_is_not_told():
    boot, uuid = bytes(range(16)), bytes(range(50, 66))
    tags = {gpu_tag(boot, "a", uuid), gpu_tag(boot, "b", uuid), gpu_tag(bytes(16), "a", uuid), gpu_tag(boot, "a", bytes(16))}
    assert len(tags) == 4
    assert all(len(tag) == 8 and tag not in uuid for tag in tags)


def test_the_largest_advert_fits():
    advert = Advert(
        bytes(16),
        tuple(Port(gid(n), 64, 2**32 - 1) for n in range(8)),
        tuple(bytes([n]) * 16 for n in range(4)),
        tuple(GpuPath(n, 7, Closeness.SYSTEM) for n in range(32)),
        tuple(bytes([n]) * 8 for n in range(16)),
    )
    assert decode_advert(encode_advert(advert)) == advert


# Matching


@given(adverts(), adverts())
def test_both_ends_find_the_same_fabrics(one, other):
    here, there = matches(one, other), matches(other, one)
    turned = {(m.kind, m.pool, m.their_port, m.own_port, m.speed_mbps, m.gpu) for m in there}
    assert {(m.kind, m.pool, m.own_port, m.their_port, m.speed_mbps, m.gpu) for m in here} == turned
    assert [m.kind for m in here] == sorted((m.kind for m in here), key=[Kind.SHM, Kind.CXL, Kind.RDMA, Kind.GPU].index)


def test_nothing_is_shared_by_having_nothing():
    assert matches(Advert(), Advert()) == ()


def test_the_fastest_pair_of_ports_in_one_subnet_comes_first():
    one = Advert(ports=(Port(gid(1), 64, 100), Port(gid(2), 64, 400), Port(gid(3, subnet=2), 64, 800)))
    other = Advert(ports=(Port(gid(9), 64, 200), Port(gid(8), 48, 400)))
    assert matches(one, other) == (
        Match(Kind.RDMA, own_port=1, their_port=0, speed_mbps=200),
        Match(Kind.RDMA, own_port=0, their_port=0, speed_mbps=100),
    )


def test_a_port_is_not_reached_from_itself():
    port = Port(gid(1), 64, 100)
    assert matches(Advert(ports=(port,)), Advert(ports=(port,))) == ()


def test_a_gpu_uses_the_port_behind_its_own_switch():
    paths = (GpuPath(0, 0, Closeness.SYSTEM), GpuPath(0, 1, Closeness.SWITCH), GpuPath(1, 0, Closeness.SWITCH))
    advert = Advert(ports=(Port(gid(1), 64, 1), Port(gid(2), 64, 1)), gpu_paths=paths)
    assert port_for(advert, 0, (0, 1)) == 1
    assert port_for(advert, 0, (0,)) == 0
    assert port_for(advert, 5, (0, 1)) is None


@given(adverts(), adverts(), st.none() | st.integers(0, 31), st.frozensets(st.integers(0, 7)))
def test_an_order_of_pairs_loses_none_and_moves_no_other_kind(one, other, gpu, local):
    found = matches(one, other)
    ordered = order_pairs(found, one, other, gpu, local)
    assert sorted(ordered, key=repr) == sorted(found, key=repr)
    assert [match.kind for match in ordered] == [match.kind for match in found]
    assert order_pairs(ordered, one, other, gpu, local) == ordered


@given(adverts(), adverts(), st.integers(0, 31))
def test_no_pair_comes_first_whose_port_is_further_from_the_gpu_than_another(one, other, gpu):
    pairs = [match for match in order_pairs(matches(one, other), one, other, gpu) if match.kind is Kind.RDMA]
    near = {match.own_port: port_nearness(one, gpu, match.own_port) for match in pairs}
    assert all(near[here.own_port] <= near[there.own_port] for here, there in pairwise(pairs))


def port_nearness(advert, gpu, port):
    found = [path for path in advert.gpu_paths if (path.gpu, path.port) == (gpu, port)]
    return found[-1].closeness if found else FAR


def test_tensors_take_the_port_behind_the_switch_of_their_gpu_and_one_near_a_gpu_on_the_other_side():
    paths = (GpuPath(0, 0, Closeness.SWITCH), GpuPath(1, 1, Closeness.SWITCH), GpuPath(2, 1, Closeness.SYSTEM))
    one = Advert(ports=(Port(gid(1), 64, 400), Port(gid(2), 64, 100)), gpu_paths=paths)
    other = Advert(ports=(Port(gid(8), 64, 400), Port(gid(9), 64, 400)), gpu_paths=(GpuPath(0, 1, Closeness.ROOT),))
    found = matches(one, other)
    order = [(match.own_port, match.their_port) for match in found]
    assert order == [(0, 0), (0, 1), (1, 0), (1, 1)], "the fastest first"

    def ordered(gpu, local=()):
        return [(match.own_port, match.their_port) for match in order_pairs(found, one, other, gpu, local)]

    assert ordered(0) == [(0, 1), (0, 0), (1, 1), (1, 0)]
    assert ordered(1) == [(1, 1), (1, 0), (0, 1), (0, 0)]
    assert ordered(2) == [(1, 1), (1, 0), (0, 1), (0, 0)]
    assert ordered(None) == order, "tensors on the host take the fastest"
    assert ordered(None, local={1}) == [(1, 0), (1, 1), (0, 0), (0, 1)], "or those where their memory is"
