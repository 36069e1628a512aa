"""Records as they are kept: packed and read again byte for byte, decoded ones bounded, and small."""

import gc
import random
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given
from record_strategies import CARD, EDGES, IDENTITIES, LIFETIME_S, NETWORK, VERDICT, WALL_S, payloads

from protocol.coordinates import Coordinate
from protocol.identity import Identity
from protocol.membership import Membership, MembershipConfig
from protocol.records import DEFAULT_RECORD_CONFIG, Hardware, RecordKind, RecordPacker, fit, kind_of, open_record, seal
from protocol.records.packing import DECODED_MAX, SERVINGS_MAX
from protocol.rows import KINDS, Rows
from protocol.table import PeerTable, TableConfig, record_key

RECORDS = DEFAULT_RECORD_CONFIG


def sealed(payload, sequence=1, who=1):
    return seal(IDENTITIES[who], NETWORK, payload, sequence, WALL_S, WALL_S + LIFETIME_S[kind_of(payload)])


@given(payloads)
def test_what_is_unpacked_is_what_was_packed(payload):
    record = sealed(fit(payload))
    packed = RecordPacker().pack(record)
    assert RecordPacker().unpack(packed, RECORDS) == record  # by one that has not seen it


@given(payloads)
def test_a_stamp_is_kept_beside_its_record(payload):
    record = replace(sealed(fit(payload)), stamp=bytes(range(64)))
    packed = RecordPacker().pack(record)
    assert RecordPacker().unpack(packed, RECORDS).stamp == record.stamp
    assert len(packed) == len(RecordPacker().pack(replace(record, stamp=None))) + 64


def test_a_card_is_kept_in_six_tenths_of_its_bytes():
    record = sealed(CARD)
    assert len(RecordPacker().pack(record)) < 0.6 * len(record.envelope)


def test_one_more_peer_costs_less_than_850_bytes():
    def filled(count):
        table = PeerTable(IDENTITIES[0].peer_id, TableConfig())
        membership = Membership(MembershipConfig(small_mesh=0), IDENTITIES[0].peer_id, random.Random(1))
        for number in range(count):
            identity = Identity.from_seed(number.to_bytes(32, "big"))
            record = seal(identity, NETWORK, replace(CARD, agent=f"agent {number}"), 1, WALL_S, WALL_S + 600.0)
            record = open_record(bytes(bytearray(record.envelope)), NETWORK, WALL_S)  # bytes of its own
            table.offer(record, 0.0, WALL_S)
            membership.handle_card(record.peer_id, record.payload.addresses, 0.0)
            while membership.next_output() is not None:
                pass
        return table, membership

    sizes = []
    filled(300)  # what is made once
    for count in (300, 1300):
        tracemalloc.start()
        kept = filled(count)
        gc.collect()
        sizes.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert len(kept[0].known()) == count
        del kept
    assert sizes[1] - sizes[0] < 1000 * 850  # 390 of them are the packed card, which is longer than usual


def test_a_record_asked_for_again_is_the_same_object_and_few_stay_decoded():
    packer = RecordPacker()
    packed = [packer.pack(sealed(CARD, sequence)) for sequence in range(1, DECODED_MAX + 3)]
    first = packer.unpack(packed[0], RECORDS)
    assert packer.unpack(packed[0], RECORDS) is first
    assert len(packer._decoded) == DECODED_MAX
    for again in packed:
        packer.unpack(again, RECORDS)
    assert packer.unpack(packed[0], RECORDS) == first
    assert packer.unpack(packed[0], RECORDS) is not first


def test_cards_that_say_the_same_share_what_routing_asks():
    packer = RecordPacker()
    one = packer.serving(CARD)
    assert packer.serving(sealed(replace(CARD, agent="other"), 2).payload) is one
    different = packer.serving(replace(CARD, hardware=replace(CARD.hardware, numa_nodes=7)))
    assert (different.hardware.numa_nodes, different.models) == (7, CARD.models)
    for number in range(SERVINGS_MAX + 2):
        packer.serving(replace(CARD, hardware=Hardware(f"cpu {number}", 1, 1, 1)))
    assert len(packer._servings) == SERVINGS_MAX


def test_the_table_tells_what_routing_asks_without_reading_a_card():
    table = PeerTable(IDENTITIES[0].peer_id, TableConfig())
    place = Coordinate((0.0, -0.5, 0.25, 0.125, 0.0, 0.0, 0.0, 1.0), 0.0625, 1.5)  # exact in 32 bits
    there, nowhere = sealed(replace(CARD, coordinate=place)), sealed(replace(CARD, coordinate=None), who=2)
    for record in (there, nowhere, sealed(VERDICT, 2, who=3)):
        table.offer(record, 0.0, WALL_S)
    table._packer.unpack = None  # nothing may be read
    assert table.known() == sorted((there.peer_id, nowhere.peer_id))
    assert list(table.places()) == [(there.peer_id, (*place.vector, place.height_s, place.error))]
    serving, told = table.serving(there.peer_id)
    assert (serving.models, serving.hardware, told) == (CARD.models, CARD.hardware, (*place.vector, 0.0625, 1.5))
    assert table.serving(nowhere.peer_id)[1] is None
    assert table.serving(IDENTITIES[3].peer_id) is None


def test_the_table_tells_what_verdicts_ask_without_reading_a_card():
    table = PeerTable(IDENTITIES[0].peer_id, TableConfig())
    for record in (sealed(replace(CARD, incarnation=7)), sealed(VERDICT, 2, who=3)):
        table.offer(record, 0.0, WALL_S)
    card, verdict = record_key(IDENTITIES[1].peer_id, RecordKind.CARD), record_key(IDENTITIES[3].peer_id, RecordKind.VERDICT)
    unknown, table._packer.unpack = record_key(IDENTITIES[3].peer_id, RecordKind.CARD), None  # nothing may be read
    assert [table.incarnation_of(key) for key in (card, verdict, unknown)] == [7, None, None]
    assert [table.peer_of(key) for key in (card, verdict, unknown)] == [IDENTITIES[1].peer_id, IDENTITIES[3].peer_id, None]


def test_the_incarnation_is_that_of_the_newest_card():
    table = PeerTable(IDENTITIES[0].peer_id, TableConfig())
    table.offer(sealed(replace(CARD, incarnation=7)), 0.0, WALL_S)
    table.offer(sealed(replace(CARD, incarnation=9), 2), 0.0, WALL_S)
    assert table.incarnation_of(record_key(IDENTITIES[1].peer_id, RecordKind.CARD)) == 9


def test_a_card_that_tells_no_place_any_more_takes_the_old_one_away():
    table = PeerTable(IDENTITIES[0].peer_id, TableConfig())
    table.offer(sealed(CARD), 0.0, WALL_S)
    assert len(list(table.places())) == 1
    table.offer(sealed(replace(CARD, coordinate=None), 2), 0.0, WALL_S)
    assert list(table.places()) == []


@pytest.mark.parametrize("kind", [RecordKind.CARD, RecordKind.EDGES])
def test_a_peer_whose_key_another_has_does_not_replace_it(kind, monkeypatch):
    monkeypatch.setattr("protocol.table.record_key", lambda peer_id, kind: record_key(b"", kind))
    table = PeerTable(IDENTITIES[0].peer_id, TableConfig())
    payload = {RecordKind.CARD: CARD, RecordKind.EDGES: EDGES}[kind]
    first = sealed(payload)
    table.offer(first, 0.0, WALL_S)
    table.offer(sealed(payload, 9, who=2), 0.0, WALL_S)
    assert list(table) == [first]
    assert table.get(IDENTITIES[2].peer_id, kind) is None


def test_rows_stay_sorted_and_columns_together():
    rows, keys = Rows(), [record_key(identity.peer_id, kind) for identity in IDENTITIES for kind in KINDS]
    for number, key in enumerate(keys):
        row = rows.insert(key, IDENTITIES[number // len(KINDS)].peer_id, KINDS[number % len(KINDS)])
        rows.sequences[row] = rows.incarnations[row] = number
        rows.set_place(row, Coordinate((float(number),) * 8, 0.0, 0.0))
    for number in range(0, len(keys), 3):
        rows.delete(rows.find(keys[number]))
    left = [(key, number) for number, key in enumerate(keys) if number % 3]
    assert [(rows.key(row), rows.sequences[row]) for row in range(len(rows))] == sorted(left)
    for key, number in left:
        row = rows.find(key)
        assert (rows.kind(row), rows.peers[row]) == (KINDS[number % len(KINDS)], IDENTITIES[number // len(KINDS)].peer_id)
        assert rows.place(row)[0] == rows.incarnations[row] == number
    assert rows.find(keys[0]) is None
    assert [row for bucket in range(256) for row in rows.of_bucket(bucket)] == list(range(len(rows)))


def test_a_table_goes_on_with_another_packer():
    table = PeerTable(IDENTITIES[0].peer_id, TableConfig())
    records = [sealed(CARD), sealed(VERDICT, 2), sealed(CARD, who=2)]
    for record in records:
        table.offer(record, 0.0, WALL_S)
    held = list(table)
    table.use_packer(RecordPacker())
    assert list(table) == held


def test_all_kinds_are_packed():
    packer = RecordPacker()
    for payload in (CARD, EDGES, VERDICT):
        assert RecordPacker().unpack(packer.pack(sealed(payload)), RECORDS).payload == payload
