"""The messages of gossip: what goes comes back, what is out of its limits is refused, long lists are split."""

from itertools import zip_longest

import pytest
from gossip_strategies import messages
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.gossip import MESSAGE_BYTES_MAX
from protocol.gossip.messages import (
    ENTRIES_MAX,
    ENVELOPES_MAX,
    RECORDS_PER_PIECE,
    STAMP_BYTES,
    WANTS_MAX,
    Graft,
    Keep,
    Records,
    ScopeTold,
    Seek,
    Want,
    answer_messages,
    decode_message,
    encode_message,
    entries_messages,
    in_pieces,
    records_messages,
    stamped_messages,
)
from protocol.scope import Scope
from protocol.table import BUCKETS, RecordKey
from protocol.wire import PackingLimits, pack

WIDE = PackingLimits(size_bytes_max=1_000_000, depth_max=16, values_max=100_000)


@given(messages)
def test_a_message_comes_back_as_it_went(message):
    assert decode_message(encode_message(message)) == message


@given(
    st.binary(max_size=200)
    | st.lists(
        st.integers(0, 10) | st.booleans() | st.binary(max_size=40) | st.lists(st.binary(max_size=5)),
        max_size=4,
    ).map(lambda value: pack(value, WIDE))
)
def test_any_bytes_are_a_message_or_the_one_declared_error(payload):
    try:
        decode_message(payload)
        code = ErrorCode.NO_ERROR
    except RemoteProtocolError as error:
        code = error.code
    assert code in (ErrorCode.NO_ERROR, ErrorCode.MALFORMED, ErrorCode.TOO_LARGE)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ([], ErrorCode.MALFORMED),
        ([1], ErrorCode.MALFORMED),
        ({"type": 1}, ErrorCode.MALFORMED),
        ([True, []], ErrorCode.MALFORMED),
        (["records", []], ErrorCode.MALFORMED),
        ([1, {}], ErrorCode.MALFORMED),
        ([1, ["text"]], ErrorCode.MALFORMED),
        ([1, [b""] * (ENVELOPES_MAX + 1)], ErrorCode.TOO_LARGE),
        ([2, b""], ErrorCode.MALFORMED),
        ([2, b"x" * 7], ErrorCode.MALFORMED),
        ([2, b"x" * 16], ErrorCode.MALFORMED),  # neither one hash nor one of each bucket
        ([2, b"x" * 8 * (BUCKETS - 1)], ErrorCode.MALFORMED),
        ([2, b"x" * 8 * (BUCKETS + 1)], ErrorCode.TOO_LARGE),
        ([3, bytes(32)], ErrorCode.MALFORMED),
        ([3, bytes(31), b""], ErrorCode.MALFORMED),
        ([3, bytes(32), b"x" * 15], ErrorCode.MALFORMED),
        ([3, bytes(32), bytes(16)], ErrorCode.MALFORMED),  # sequence 0
        ([3, bytes(32), b"\xff" * 16], ErrorCode.MALFORMED),
        ([3, bytes(32), b"\x01" * 16 * (ENTRIES_MAX + 1)], ErrorCode.TOO_LARGE),
        ([4, b""], ErrorCode.MALFORMED),
        ([4, b"x" * 9], ErrorCode.MALFORMED),
        ([4, b"x" * 8 * (WANTS_MAX + 1)], ErrorCode.TOO_LARGE),
        ([5], ErrorCode.MALFORMED),
        ([7, b"x" * 15], ErrorCode.MALFORMED),
        ([7, bytes(16)], ErrorCode.MALFORMED),  # sequence 0
        ([7, b"\x01" * 16 * (ENTRIES_MAX + 1)], ErrorCode.TOO_LARGE),
        ([8, "beat"], ErrorCode.MALFORMED),
        ([9, None], ErrorCode.MALFORMED),
        ([9, 1], ErrorCode.MALFORMED),
        ([10, "everything"], ErrorCode.MALFORMED),
        ([10, [0.0] * 8], ErrorCode.MALFORMED),
        ([10, [0.0] * 9, 0.1], ErrorCode.MALFORMED),
        ([10, [0.0] * 7 + [False], 0.1], ErrorCode.MALFORMED),
        ([10, [0.0] * 7 + [-60.1], 0.1], ErrorCode.MALFORMED),
        ([10, [0.0] * 8, 60.1], ErrorCode.MALFORMED),
        ([11, "model"], ErrorCode.MALFORMED),
        ([11, b"model", 1], ErrorCode.MALFORMED),
        ([11, "model", True], ErrorCode.MALFORMED),
        ([11, "model", 17], ErrorCode.TOO_LARGE),
        ([11, "m" * 257, 1], ErrorCode.TOO_LARGE),
        ([1, [b"x" * 66_000]], ErrorCode.TOO_LARGE),
    ],
)
def test_a_message_out_of_its_limits_is_refused(value, code):
    with pytest.raises(RemoteProtocolError) as caught:
        decode_message(pack(value, WIDE))
    assert caught.value.code is code


def test_messages_of_later_versions_are_ignored():
    assert decode_message(pack([12, "whatever"], WIDE)) is None
    assert decode_message(pack([0, "whatever"], WIDE)) is None
    assert decode_message(pack([4, b"x" * 8, "more"], WIDE)) == Want((RecordKey(b"x" * 8),))
    assert decode_message(pack([5, {"why": "lonely"}], WIDE)) == Graft()
    for more in ("more", -1, 128, True, None, 3.0):
        assert decode_message(pack([9, False, more], WIDE)) == Keep(keeps=False)
    assert decode_message(pack([9, False, 4, "more"], WIDE)) == Keep(keeps=False, legs=4)
    assert decode_message(pack([10, [0] * 8, 1, "more"], WIDE)) == ScopeTold(Scope((0.0,) * 8, 1.0))
    assert decode_message(pack([11, "model", 3, "more"], WIDE)) == Seek("model", 3)


def test_long_lists_are_split_into_messages_within_the_limit():
    envelopes = [bytes([index % 256]) * 700 for index in range(300)]
    split = records_messages(envelopes)
    assert all(len(message) <= MESSAGE_BYTES_MAX for message in split)
    assert [envelope for message in split for envelope in decode_message(message).envelopes] == envelopes
    assert len(split) == 4
    assert len(records_messages([b"x" * 10] * 1000)) == 2
    pairs = [(RecordKey(index.to_bytes(8, "big")), index + 1) for index in range(7000)]
    split = answer_messages(pairs)
    assert [len(decode_message(message).entries) for message in split] == [3072, 3072, 856]
    assert all(len(message) <= MESSAGE_BYTES_MAX for message in split)
    told = [(bucket, pairs[bucket * 25 : bucket * 25 + 25]) for bucket in range(BUCKETS)] + [(5, pairs)]
    split = [decode_message(message) for message in entries_messages(told)]
    assert all(len(message.entries) <= ENTRIES_MAX for message in split)
    assert [bucket for message in split for bucket in message.buckets] == [*range(BUCKETS), 5]


stamps = st.none() | st.binary(min_size=STAMP_BYTES, max_size=STAMP_BYTES)


@given(st.lists(st.tuples(st.binary(max_size=2000), stamps), max_size=600))
def test_envelopes_keep_their_stamps_and_their_order(told):
    split = stamped_messages(told)
    assert all(len(message) <= MESSAGE_BYTES_MAX for message in split)
    read = [decode_message(message) for message in split]
    assert [pair for records in read for pair in zip_longest(records.envelopes, records.stamps)] == told


def test_stamped_messages_stay_within_the_values_that_earlier_nodes_read():
    split = stamped_messages([(b"x" * 10, bytes(STAMP_BYTES))] * 600)
    assert [len(decode_message(message).envelopes) for message in split] == [256, 256, 88]
    mixed = stamped_messages([(b"x", None)] * 300 + [(b"x", bytes([1]) * STAMP_BYTES)])
    assert [len(decode_message(message).envelopes) for message in mixed] == [300, 1]


@pytest.mark.parametrize(
    "told",
    [[b"x" * 64], [b"x" * 63, None], [None, "x" * 64], [None] * 3, None, b"x" * 64],
    ids=["few", "short", "text", "many", "nil", "bytes"],
)
def test_stamps_that_do_not_fit_their_envelopes_are_malformed(told):
    with pytest.raises(RemoteProtocolError) as caught:
        decode_message(pack([1, [b"a", b"b"], told], WIDE))
    assert caught.value.code is ErrorCode.MALFORMED


def test_stamps_of_nothing_are_as_none():
    assert decode_message(pack([1, [b"a", b"b"], [None, None]], WIDE)) == Records((b"a", b"b"))


# Pieces


@given(
    st.lists(st.tuples(st.binary(min_size=64, max_size=300), st.none() | st.binary(min_size=STAMP_BYTES, max_size=STAMP_BYTES))),
    st.integers(1, 20),
)
def test_records_are_cut_into_pieces_that_say_the_same_in_order(told, records_max):
    for payload in stamped_messages(told):
        whole = decode_message(payload)
        pieces = [decode_message(piece) for piece in in_pieces(payload, records_max)]
        assert all(len(piece.envelopes) <= records_max for piece in pieces)
        assert sum((piece.envelopes for piece in pieces), ()) == whole.envelopes
        stamps = sum((piece.stamps or (None,) * len(piece.envelopes) for piece in pieces), ())
        assert stamps == (whole.stamps or (None,) * len(whole.envelopes))


@given(messages.filter(lambda message: not isinstance(message, Records)).map(encode_message) | st.binary(max_size=2000))
def test_what_is_no_good_message_of_many_records_stays_whole(payload):
    assert in_pieces(payload) == [payload]


@pytest.mark.parametrize("head", [b"\x92\x01", b"\xdc\x00\x02\x01", b"\x92\xcc\x01", b"\x92\xcd\x00\x01"])
def test_no_way_to_write_many_records_keeps_them_together(head):
    envelopes = [bytes([number]) * 100 for number in range(4 * RECORDS_PER_PIECE)]
    payload = head + pack(envelopes, WIDE)
    assert decode_message(payload) == Records(tuple(envelopes))
    assert len(in_pieces(payload)) == 4
