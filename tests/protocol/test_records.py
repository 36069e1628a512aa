"""Records: envelopes, payloads, bounds, lifetimes, sequence numbers."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_strategies import (
    CARD,
    EDGES,
    EXAMPLES,
    HARDWARE,
    IDENTITIES,
    LIFETIME_S,
    NETWORK,
    VERDICT,
    WALL_S,
    payloads,
)

from protocol.coordinates import Coordinate
from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.multiaddr import Multiaddr
from protocol.records import (
    DEFAULT_RECORD_CONFIG,
    Accusation,
    Card,
    Edge,
    Edges,
    ModelOffer,
    RecordKind,
    RecordReader,
    Sequencer,
    Verdict,
    fit,
    kind_of,
    open_record,
    peek,
    seal,
)
from protocol.records.envelope import RECORD_DOMAIN
from protocol.wire import PackingLimits, pack, unpack

ALICE, BOB = IDENTITIES[:2]
WIDE = PackingLimits(size_bytes_max=100_000, depth_max=16, values_max=10_000)


def sealed(payload=CARD, *, identity=ALICE, sequence=7, network=NETWORK, issued_s=WALL_S, lifetime_s=None):
    lifetime_s = LIFETIME_S[kind_of(payload)] if lifetime_s is None else lifetime_s
    return seal(identity, network, payload, sequence, issued_s, issued_s + lifetime_s)


def signed_by_hand(fields, identity=ALICE):
    """What a peer that keeps to no rule can sign."""
    signed = pack(fields, WIDE)
    return identity.sign(RECORD_DOMAIN + signed) + signed


def fields_of(record):
    return unpack(record.envelope[64:], WIDE)


def refused(envelope, wall_s=WALL_S, network=NETWORK):
    with pytest.raises(RemoteProtocolError) as caught:
        open_record(envelope, network, wall_s)
    return caught.value.code


@given(payload=payloads, who=st.sampled_from(IDENTITIES), sequence=st.integers(1, 2**63 - 1))
def test_a_sealed_record_opens_as_it_was_sealed(payload, who, sequence):
    record = sealed(payload, identity=who, sequence=sequence)
    opened = open_record(record.envelope, NETWORK, WALL_S)
    assert opened == record
    assert opened.payload == payload
    assert (opened.kind, opened.peer_id, opened.sequence) == (kind_of(payload), who.peer_id, sequence)
    header = peek(record.envelope)
    assert (header.network_id, header.kind, header.peer_id, header.sequence) == (NETWORK, opened.kind, who.peer_id, sequence)
    assert (header.issued_s, header.expires_s) == (opened.issued_s, opened.expires_s)


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_with_the_declared_error(envelope):
    with pytest.raises(RemoteProtocolError):
        peek(envelope)
    with pytest.raises(RemoteProtocolError):
        open_record(envelope, NETWORK, WALL_S)


@given(payload=st.binary(max_size=200), kind=st.sampled_from(RecordKind))
def test_any_signed_payload_is_a_value_or_the_declared_error(payload, kind):
    fields = fields_of(sealed(VERDICT))  # its lifetime is one that every kind allows
    fields[1], fields[6] = kind.value, payload
    try:
        code = None
        open_record(signed_by_hand(fields), NETWORK, WALL_S)
    except RemoteProtocolError as error:
        code = error.code
    assert code in (None, ErrorCode.MALFORMED, ErrorCode.TOO_LARGE)


@settings(max_examples=300)
@given(payload=st.sampled_from(EXAMPLES), data=st.data())
def test_no_mutated_envelope_is_accepted(payload, data):
    original = sealed(payload).envelope
    mutated = bytearray(original)
    match data.draw(st.sampled_from(["flip", "cut", "grow", "splice"])):
        case "flip":
            position = data.draw(st.integers(0, len(mutated) - 1))
            mutated[position] ^= data.draw(st.integers(1, 255))
        case "cut":
            del mutated[data.draw(st.integers(0, len(mutated) - 1)) :]
        case "grow":
            mutated += data.draw(st.binary(min_size=1, max_size=20))
        case "splice":
            other = sealed(payload, sequence=8).envelope
            mutated = bytearray(original[:64] + other[64:])
    with pytest.raises(RemoteProtocolError):
        open_record(bytes(mutated), NETWORK, WALL_S)


def test_a_forged_record_is_refused():
    forged = signed_by_hand(fields_of(sealed(CARD)), identity=BOB)  # Bob signs what names Alice
    assert refused(forged) is ErrorCode.BAD_SIGNATURE


def test_a_signature_without_the_domain_is_refused():
    signed = sealed(CARD).envelope[64:]
    assert refused(ALICE.sign(signed) + signed) is ErrorCode.BAD_SIGNATURE


def test_a_record_of_another_network_is_refused():
    assert refused(sealed(network="elsewhere").envelope) is ErrorCode.WRONG_NETWORK


@pytest.mark.parametrize("payload", EXAMPLES)
def test_a_record_lives_from_a_minute_before_its_issue_to_a_minute_after_its_expiry(payload):
    record = sealed(payload)
    lifetime_s = LIFETIME_S[record.kind]
    assert refused(record.envelope, WALL_S - 60.5) is ErrorCode.NOT_YET_VALID
    open_record(record.envelope, NETWORK, WALL_S - 60.0)
    open_record(record.envelope, NETWORK, WALL_S + lifetime_s + 59.5)
    assert refused(record.envelope, WALL_S + lifetime_s + 60.0) is ErrorCode.EXPIRED


@pytest.mark.parametrize("payload", EXAMPLES)
def test_a_lifetime_over_its_limit_is_neither_sealed_nor_opened(payload):
    over_s = LIFETIME_S[kind_of(payload)] + 0.001
    with pytest.raises(LocalProtocolError):
        sealed(payload, lifetime_s=over_s)
    fields = fields_of(sealed(payload))
    fields[5] += 1
    assert refused(signed_by_hand(fields)) is ErrorCode.MALFORMED
    fields[5] = fields[4]
    assert refused(signed_by_hand(fields)) is ErrorCode.MALFORMED


@pytest.mark.parametrize(
    ("position", "value", "code"),
    [
        (0, "", ErrorCode.MALFORMED),
        (0, "n" * 65, ErrorCode.MALFORMED),
        (0, b"test-network", ErrorCode.MALFORMED),
        (1, "route", ErrorCode.UNSUPPORTED),  # a kind of a later version
        (1, "beat", ErrorCode.UNSUPPORTED),  # a kind that is given up
        (1, 1, ErrorCode.MALFORMED),
        (2, b"", ErrorCode.MALFORMED),
        (2, b"\x13\x20" + bytes(32), ErrorCode.MALFORMED),  # a multihash of another kind
        (2, b"\x12\x20" + bytes(31), ErrorCode.MALFORMED),  # a length byte that lies
        (2, b"\x12\x20" + bytes(32), ErrorCode.UNSUPPORTED),  # the hash of some key
        (2, "text", ErrorCode.MALFORMED),
        (3, 0, ErrorCode.MALFORMED),
        (3, -1, ErrorCode.MALFORMED),
        (3, 1.0, ErrorCode.MALFORMED),
        (3, True, ErrorCode.MALFORMED),
        (4, -1, ErrorCode.MALFORMED),
        (5, 2**53, ErrorCode.MALFORMED),
        (6, {}, ErrorCode.MALFORMED),
    ],
)
def test_a_header_out_of_range_is_refused(position, value, code):
    fields = fields_of(sealed(EDGES))
    fields[position] = value
    assert refused(signed_by_hand(fields)) is code


def test_later_versions_may_add_to_the_header_and_to_every_array():
    fields = fields_of(sealed(EDGES))
    plain_edges = unpack(fields[6], WIDE)
    plain_edges["edges"][0].append("later")
    fields[6] = pack(plain_edges, WIDE)
    fields.append({"later": 1})
    envelope = signed_by_hand(fields)
    opened = open_record(envelope, NETWORK, WALL_S)
    assert opened.payload == EDGES
    assert opened.envelope == envelope


def test_unknown_fields_are_kept_and_sealed_again():
    later = replace(
        CARD,
        extra={"later": {"host": b"\x01", "gids": [b"a", b"b"]}},
        hardware=replace(HARDWARE, extra={"cxl": True}),
    )
    opened = open_record(sealed(later).envelope, NETWORK, WALL_S)
    assert opened.payload == later
    again = open_record(sealed(opened.payload, sequence=8).envelope, NETWORK, WALL_S)
    assert again.payload == later


def test_an_extra_field_cannot_stand_in_for_a_known_one():
    record = sealed(replace(CARD, extra={"agent": "liar", "models": []}))
    assert record.payload == CARD


def test_features_and_addresses_of_later_versions_do_not_cost_the_card():
    fields = fields_of(sealed(CARD))
    card = unpack(fields[6], WIDE)
    card["models"][0]["features"].append("video")
    card["addresses"].append(bytes.fromhex("047f00000106 0fa1".replace(" ", "")))  # /ip4/127.0.0.1/tcp/4001
    fields[6] = pack(card, WIDE)
    assert open_record(signed_by_hand(fields), NETWORK, WALL_S).payload == CARD


def test_edges_count_samples_up_to_their_limit():
    many = Edges((Edge(BOB.peer_id, 0.01, 0.001, 10**9),))
    assert sealed(many).payload == Edges((Edge(BOB.peer_id, 0.01, 0.001, 65_535),))


OFFER = CARD.models[0]
EDGE = EDGES.edges[0]
ACCUSATION = VERDICT.accused[0]
ADDRESS = CARD.addresses[0]
ORIGIN = (0.0,) * 8


@pytest.mark.parametrize(
    "payload",
    [
        replace(CARD, addresses=(ADDRESS,) * 17),
        replace(CARD, models=(ModelOffer("m", frozenset()),) * 65),
        replace(CARD, models=(replace(OFFER, model=""),)),
        replace(CARD, models=(replace(OFFER, model="m" * 257),)),
        replace(CARD, models=(replace(OFFER, context_length=-1),)),
        replace(CARD, models=(replace(OFFER, digest=bytes(33)),)),
        replace(CARD, hardware=replace(HARDWARE, gpus=HARDWARE.gpus * 33)),
        replace(CARD, hardware=replace(HARDWARE, nics=HARDWARE.nics * 33)),
        replace(CARD, hardware=replace(HARDWARE, cpu_count=-1)),
        replace(CARD, hardware=replace(HARDWARE, memory_bytes=2**53)),
        replace(CARD, agent="a" * 257),
        replace(CARD, agent="a\ud800"),
        replace(CARD, extra={f"x{index}": 0 for index in range(33)}),
        replace(CARD, extra={"x": [[[[[[[[1]]]]]]]]}),
        replace(CARD, extra={"x": math.nan}),
        replace(CARD, extra={"x": "y" * 4096}),
        replace(CARD, coordinate=Coordinate(ORIGIN[:7], 0.0, 0.0)),
        replace(CARD, coordinate=Coordinate((*ORIGIN, 0.0), 0.0, 0.0)),
        replace(CARD, coordinate=Coordinate((math.nan, *ORIGIN[1:]), 0.0, 0.0)),
        replace(CARD, coordinate=Coordinate((math.inf, *ORIGIN[1:]), 0.0, 0.0)),
        replace(CARD, coordinate=Coordinate((60.5, *ORIGIN[1:]), 0.0, 0.0)),
        replace(CARD, coordinate=Coordinate(ORIGIN, -0.001, 0.0)),
        replace(CARD, coordinate=Coordinate(ORIGIN, 0.0, 1.6)),
        Edges((EDGE,) * 129),
        Edges((replace(EDGE, rtt_s=-0.001),)),
        Edges((replace(EDGE, rtt_s=60.5),)),
        Edges((replace(EDGE, rtt_s=math.inf),)),
        Edges((replace(EDGE, jitter_s=math.nan),)),
        Edges((replace(EDGE, samples=-1),)),
        Edges((replace(EDGE, peer_id=b"nobody"),)),
        replace(CARD, incarnation=-1),
        replace(CARD, seal_key=bytes(33)),
        replace(CARD, incarnation=2**63),
        Verdict((ACCUSATION,) * 129),
        Verdict((replace(ACCUSATION, subject=b"seven by"[:7]),)),
        Verdict((replace(ACCUSATION, subject=b"nine byte"),)),
        Verdict((replace(ACCUSATION, incarnation=-1),)),
        Verdict((replace(ACCUSATION, incarnation=2**63),)),
    ],
    ids=range(38),
)
def test_a_value_out_of_range_is_not_sealed(payload):
    with pytest.raises(LocalProtocolError):
        sealed(payload)


@pytest.mark.parametrize(
    ("payload", "path", "value"),
    [
        (CARD, ["agent"], 5),
        (CARD, ["agent"], "a" * 300),
        (CARD, ["hardware"], None),
        (CARD, ["hardware", "cpu_count"], 1.5),
        (CARD, ["hardware", "cpu_count"], True),
        (CARD, ["addresses"], "x"),
        (CARD, ["addresses", 0], "/ip4/192.0.2.7/udp/4001/quic-v1"),
        (CARD, ["addresses", 0], b"\x04" * 400),
        (CARD, ["models", 0, "features"], ["chat"] * 17),
        (CARD, ["models", 0], []),
        (CARD, ["models", 0, "digest"], bytes(31)),
        (CARD, ["models", 0, "digest"], "d" * 32),
        (CARD, ["models", 0, "digest"], 7),
        (CARD, ["coordinate"], [[0.0] * 7, 0.0, 0.0]),
        (CARD, ["coordinate"], [[0.0] * 8, 0.0]),
        (CARD, ["coordinate", 0, 0], "far"),
        (CARD, ["hardware", "gpus", 0, "bus_mbps"], -1),
        (CARD, ["hardware", "gpus", 0, "bus_mbps"], 504.5),
        (CARD, ["hardware", "gpus", 0, "numa_node"], 1_000_001),
        (CARD, ["hardware", "nics", 0, "bus_mbps"], "fast"),
        (CARD, ["hardware", "nics", 0, "numa_node"], True),
        (EDGES, ["edges", 0, 0], "peer"),
        (EDGES, ["edges", 0], [bytes(BOB.peer_id), 0.01, 0.001]),
        (EDGES, ["edges", 0, 1], -0.5),
        (EDGES, ["edges", 0, 1], True),
        (EDGES, ["edges"], {}),
        (CARD, ["incarnation"], "one"),
        (CARD, ["seal_key"], bytes(31)),
        (CARD, ["seal_key"], "k" * 32),
        (CARD, ["relays"], 1),
        (CARD, ["relays"], "yes"),
        (CARD, ["incarnation"], -1),
        (CARD, ["incarnation"], True),
        (VERDICT, ["accused"], {}),
        (VERDICT, ["accused", 0], [b"01234567"]),
        (VERDICT, ["accused", 0, 0], "01234567"),
        (VERDICT, ["accused", 0, 0], b"0123456"),
        (VERDICT, ["accused", 0, 1], -1),
        (VERDICT, ["accused", 0, 1], 1.0),
        (VERDICT, ["accused"], [[b"01234567", 1]] * 129),
    ],
)
def test_a_signed_value_out_of_range_is_refused(payload, path, value):
    fields = fields_of(sealed(payload))
    whole = place = unpack(fields[6], WIDE)
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    fields[6] = pack(whole, WIDE)
    assert refused(signed_by_hand(fields)) in (ErrorCode.MALFORMED, ErrorCode.TOO_LARGE)


@pytest.mark.parametrize(
    ("payload", "field"),
    [(CARD, "agent"), (CARD, "coordinate"), (EDGES, "edges"), (VERDICT, "accused")],
)
def test_a_missing_field_is_malformed(payload, field):
    fields = fields_of(sealed(payload))
    whole = unpack(fields[6], WIDE)
    del whole[field]
    fields[6] = pack(whole, WIDE)
    assert refused(signed_by_hand(fields)) is ErrorCode.MALFORMED


@pytest.mark.parametrize(
    ("kind", "bytes_max"),
    [(RecordKind.CARD, 4096), (RecordKind.EDGES, 8192), (RecordKind.VERDICT, 4096)],
)
def test_an_envelope_over_the_limit_of_its_kind_is_too_large(kind, bytes_max):
    fields = fields_of(sealed(VERDICT))  # its lifetime is one that every kind allows
    fields[1], fields[6] = kind.value, b""
    short = len(signed_by_hand(fields))
    fields[6] = b"x" * (bytes_max - short - 1)  # a bin of more than 255 bytes has a header of one byte more
    assert len(signed_by_hand(fields)) == bytes_max
    assert refused(signed_by_hand(fields)) is ErrorCode.MALFORMED
    fields[6] += b"x"
    assert refused(signed_by_hand(fields)) is ErrorCode.TOO_LARGE


def test_the_most_edges_fit_with_the_longest_header():
    edges = Edges((Edge(BOB.peer_id, 0.0123456, 0.00123456, 65_535),) * 128)
    record = seal(ALICE, "n" * 64, edges, 2**63 - 1, WALL_S, WALL_S + 3600.0)
    assert record.payload == edges
    assert len(record.envelope) <= DEFAULT_RECORD_CONFIG.edges_bytes_max


def test_the_most_accusations_fit_with_the_longest_header():
    verdict = Verdict((Accusation(b"\xff" * 8, 2**63 - 1),) * 128)
    record = seal(ALICE, "n" * 64, verdict, 2**63 - 1, WALL_S, WALL_S + 600.0)
    assert record.payload == verdict
    assert len(record.envelope) <= DEFAULT_RECORD_CONFIG.verdict_bytes_max


def test_usual_records_are_small():
    assert len(sealed(CARD).envelope) < 800
    assert len(sealed(EDGES).envelope) < 300
    assert len(sealed(VERDICT).envelope) < 256
    assert len(sealed(Verdict(())).envelope) < 180


def test_card_without_incarnation_is_one_of_an_earlier_version():
    record = sealed(replace(CARD, incarnation=0))
    assert "incarnation" not in unpack(fields_of(record)[6], WIDE)
    assert open_record(record.envelope, NETWORK, WALL_S).payload == replace(CARD, incarnation=0)


@given(payload=payloads)
def test_reader_reads_what_the_functions_read(payload):
    reader, envelope = RecordReader(), sealed(payload).envelope
    assert reader.peek(envelope, DEFAULT_RECORD_CONFIG) == peek(envelope)
    assert reader.open(envelope, NETWORK, WALL_S, DEFAULT_RECORD_CONFIG) == open_record(envelope, NETWORK, WALL_S)


def test_reader_refuses_what_the_functions_refuse():
    forged = bytes(64) + sealed(VERDICT).envelope[64:]
    with pytest.raises(RemoteProtocolError) as caught:
        RecordReader().open(forged, NETWORK, WALL_S, DEFAULT_RECORD_CONFIG)
    assert caught.value.code is ErrorCode.BAD_SIGNATURE


def test_a_card_of_too_many_models_keeps_the_first_ones():
    card = replace(CARD, models=tuple(replace(OFFER, model=f"organisation/model-{index}") for index in range(100)))
    fitted = fit(card)
    assert isinstance(fitted, Card)
    assert 20 < len(fitted.models) < 64
    assert fitted.models == card.models[: len(fitted.models)]
    assert sealed(fitted).payload == fitted
    three_more = replace(card, models=card.models[: len(fitted.models) + 3])
    with pytest.raises(LocalProtocolError):
        sealed(three_more)


def test_edges_that_are_too_many_keep_the_nearest():
    luck = random.Random(5)
    edges = [Edge(BOB.peer_id, luck.uniform(0.0, 1.0), 0.001, 9) for _ in range(140)]
    fitted = fit(Edges(tuple(edges)))
    assert isinstance(fitted, Edges)
    assert [edge.rtt_s for edge in fitted.edges] == sorted(edge.rtt_s for edge in edges)[:128]


def test_a_verdict_of_too_many_accusations_keeps_the_first():
    accused = tuple(Accusation(index.to_bytes(8, "big"), index) for index in range(140))
    fitted = fit(Verdict(accused))
    assert fitted == Verdict(accused[:128])
    assert sealed(fitted).payload == fitted


@given(payloads)
def test_what_fits_is_left_alone(payload):
    assert fit(payload) == payload


def test_what_no_shorter_list_helps_is_refused():
    with pytest.raises(LocalProtocolError):
        fit(replace(CARD, extra={"x": "y" * 5000}))


def test_a_sequencer_uses_only_what_is_reserved():
    sequencer = Sequencer(reserved=0)
    with pytest.raises(LocalProtocolError):
        sequencer.next()
    upto = sequencer.needs_reservation()
    assert upto == 1000
    sequencer.reserve(upto)
    assert [sequencer.next() for _ in range(1000)] == list(range(1, 1001))
    with pytest.raises(LocalProtocolError):
        sequencer.next()


def test_a_sequencer_asks_for_the_next_block_before_the_last_is_used_up():
    sequencer = Sequencer(reserved=0)
    sequencer.reserve(1000)
    asked_at = next(number for number in iter(sequencer.next, None) if sequencer.needs_reservation() is not None)
    assert asked_at == 501
    assert sequencer.needs_reservation() == 2000


@given(crashes=st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=20))
def test_no_sequence_number_is_used_twice_whatever_crashes(crashes):
    disk = 0
    used: list[int] = []
    for count, crashes_after_writing in crashes:
        sequencer = Sequencer(reserved=disk, block=10)
        for _ in range(count):
            upto = sequencer.needs_reservation()
            if upto is not None:
                disk = upto
                if crashes_after_writing and upto % 20 == 0:
                    break
                sequencer.reserve(upto)
            used.append(sequencer.next())
    assert used == sorted(set(used))


def test_a_sequencer_moves_behind_its_forgotten_past():
    sequencer = Sequencer(reserved=0)
    sequencer.reserve(1000)
    sequencer.observe(50_000)
    with pytest.raises(LocalProtocolError):
        sequencer.next()
    upto = sequencer.needs_reservation()
    assert upto == 52_000
    sequencer.reserve(upto)
    assert sequencer.next() == 51_001  # the record that came back need not be the last of its life
    sequencer.observe(3)
    assert sequencer.next() == 51_002


def test_addresses_keep_the_peer_they_name():
    address = Multiaddr("dns", "node.example", 4001, BOB.peer_id)
    assert sealed(replace(CARD, addresses=(address,))).payload.addresses == (address,)
