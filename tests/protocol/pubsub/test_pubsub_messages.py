"""The messages of gossipsub: what goes comes back, later fields are skipped, what is over a limit is refused."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pubsub_strategies import pubsub_messages, rpcs

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.libp2p.protobuf import encode_bytes, encode_text, encode_uint
from protocol.pubsub.messages import (
    ID_BYTES_MAX,
    IDS_MAX,
    RPC_BYTES_MAX,
    RPC_FIELDS_MAX,
    TOPIC_BYTES_MAX,
    IHave,
    Prune,
    Rpc,
    Subscription,
    decode_pubsub_message,
    decode_rpc,
    encode_pubsub_message,
    encode_rpc,
    in_pieces,
)


def code_of(payload):
    with pytest.raises(RemoteProtocolError) as fault:
        decode_rpc(payload)
    return fault.value.code


@given(rpcs)
def test_an_rpc_comes_back_as_it_went(rpc):
    assert decode_rpc(encode_rpc(rpc)) == rpc


@given(pubsub_messages)
def test_a_pubsub_message_comes_back_as_it_went(message):
    assert decode_pubsub_message(encode_pubsub_message(message)) == message


@given(st.binary(max_size=200) | rpcs.map(encode_rpc).flatmap(lambda whole: st.integers(0, len(whole)).map(lambda n: whole[:n])))
def test_any_bytes_are_an_rpc_or_the_one_declared_error(payload):
    try:
        decode_rpc(payload)
        code = ErrorCode.NO_ERROR
    except RemoteProtocolError as error:
        code = error.code
    assert code in (ErrorCode.NO_ERROR, ErrorCode.MALFORMED, ErrorCode.TOO_LARGE)


def test_fields_of_later_versions_are_skipped():
    later = encode_uint(9, 1) + encode_bytes(1000, b"later")
    subscription = encode_uint(1, 1) + encode_text(2, "t") + later
    control = encode_bytes(3, encode_text(1, "t") + later) + encode_bytes(6, b"extensions")
    payload = encode_bytes(1, subscription) + encode_bytes(3, control) + later
    assert decode_rpc(payload) == Rpc(subscriptions=(Subscription("t"),), grafts=("t",))


def test_a_message_of_a_later_version_says_so():
    message = encode_text(4, "t") + encode_uint(9, 1)
    assert decode_pubsub_message(message).is_later


def test_the_peers_that_a_prune_offers_are_passed_over():
    prune = encode_text(1, "t") + encode_bytes(2, encode_bytes(1, b"someone") + encode_bytes(2, b"record")) + encode_uint(3, 60)
    assert decode_rpc(encode_bytes(3, encode_bytes(4, prune))).prunes == (Prune("t", 60),)


def test_a_message_without_a_topic_is_malformed():
    assert code_of(encode_bytes(2, encode_bytes(2, b"data"))) is ErrorCode.MALFORMED


@pytest.mark.parametrize("kind", ["iwants", "idontwants", "ihaves"])
def test_ids_are_bounded_in_number_and_length(kind):
    def told(names):
        return Rpc(ihaves=(IHave("t", names[:1]), IHave("t", names[1:]))) if kind == "ihaves" else Rpc(**{kind: names})

    at_the_limit = told((b"i",) * (IDS_MAX - 1) + (b"i" * ID_BYTES_MAX,))
    assert decode_rpc(encode_rpc(at_the_limit)) == at_the_limit
    assert code_of(encode_rpc(told((b"i",) * (IDS_MAX + 1)))) is ErrorCode.TOO_LARGE
    assert code_of(encode_rpc(told((b"i" * (ID_BYTES_MAX + 1),)))) is ErrorCode.TOO_LARGE


def test_topics_fields_and_bytes_are_bounded():
    assert decode_rpc(encode_rpc(Rpc(grafts=("t" * TOPIC_BYTES_MAX,)))).grafts
    assert code_of(encode_rpc(Rpc(grafts=("t" * (TOPIC_BYTES_MAX + 1),)))) is ErrorCode.TOO_LARGE
    assert len(decode_rpc(encode_rpc(Rpc(subscriptions=(Subscription("t"),) * RPC_FIELDS_MAX))).subscriptions) == RPC_FIELDS_MAX
    assert code_of(encode_rpc(Rpc(subscriptions=(Subscription("t"),) * (RPC_FIELDS_MAX + 1)))) is ErrorCode.TOO_LARGE
    assert code_of(encode_bytes(9, bytes(RPC_BYTES_MAX))) is ErrorCode.TOO_LARGE


def test_control_entries_are_counted_one_by_one():
    rpc = Rpc(
        subscriptions=(Subscription("a"), Subscription("b")),
        ihaves=(IHave("a", (b"1", b"2")),),
        iwants=(b"3",),
        grafts=("a",),
        prunes=(Prune("b"),),
        idontwants=(b"4", b"5"),
    )
    assert rpc.control_entries == 2 + 1 + 2 + 1 + 1 + 1 + 2


def test_fields_are_counted_over_everything_in_an_rpc():
    empty = b"\x18\x00"  # a field that no message has, with nothing in it
    ihave = encode_bytes(1, empty * 10_000)
    assert decode_rpc(encode_bytes(3, ihave)).ihaves == (IHave("", ()),)
    with pytest.raises(RemoteProtocolError) as caught:
        decode_rpc(encode_bytes(3, ihave + ihave))
    assert caught.value.code is ErrorCode.TOO_LARGE


def test_a_subscription_a_message_and_a_prune_are_charged_for_their_fields():
    filler = b"\x78\x01"  # field 15
    for outer, inner, repeats in ((1, filler * 31, 500), (2, encode_bytes(4, b"t") + filler * 30, 500)):
        with pytest.raises(RemoteProtocolError) as caught:
            decode_rpc(encode_bytes(outer, inner) * repeats)
        assert caught.value.code is ErrorCode.TOO_LARGE, outer
        decode_rpc(encode_bytes(outer, inner) * 100)
    for kind in (3, 4):
        with pytest.raises(RemoteProtocolError):
            decode_rpc(encode_bytes(3, encode_bytes(kind, filler * 31) * 500))


# Pieces


def joined(rpcs, name):
    return tuple(itertools.chain.from_iterable(getattr(rpc, name) for rpc in rpcs))


@given(rpcs, st.integers(1, 3))
def test_an_rpc_is_cut_into_pieces_that_say_the_same_in_order(rpc, messages_max):
    pieces = [decode_rpc(piece) for piece in in_pieces(encode_rpc(rpc), messages_max)]
    for name in ("subscriptions", "messages", "ihaves", "iwants", "grafts", "prunes", "idontwants"):
        assert joined(pieces, name) == getattr(rpc, name)
    sized = len(encode_rpc(rpc)) > 64 * messages_max
    assert not sized or all(len(piece.messages) <= messages_max for piece in pieces)
    assert not any(piece.subscriptions for piece in pieces[1:])
    assert not any(piece.grafts or piece.ihaves for piece in pieces[:-1])


@given(pubsub_messages, st.sampled_from([encode_uint(9, 1), encode_bytes(1000, b"later"), b""]))
def test_no_later_field_keeps_many_messages_together(message, later):
    payload = encode_rpc(Rpc(messages=(message,) * 40)) + later
    sized = len(payload) > 64 * 8
    assert len(in_pieces(payload)) == (5 if sized else 1)


@given(st.binary(max_size=200), st.integers(1, 60))
def test_any_bytes_stay_whole_or_become_several(payload, times):
    pieces = in_pieces(payload * times)
    assert pieces == [payload * times] or len(pieces) > 1


def test_what_breaks_the_format_stays_whole_and_is_found():
    payload = encode_bytes(2, encode_text(4, "t") + encode_bytes(2, b"x" * 100)) * 40 + encode_uint(2, 1)
    assert in_pieces(payload) == [payload]
    assert code_of(payload) is ErrorCode.MALFORMED
