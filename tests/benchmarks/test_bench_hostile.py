"""The attacks of the hostile benchmark are what they are called, and its goals are judged as they are written."""

import os
import time

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import pull_quic_header

from benchmarks.hostile import ATTACKS, Attacked, Run, calmest, percentile
from benchmarks.hostile_attacks import ATTACKS as MADE
from benchmarks.hostile_attacks import HELD, RAW, OffenderQuic, asked, forged
from mesh.conformance.certificates import make_chain
from mesh.conformance.quic import Manner
from protocol.encoding import FrameDecoder
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.gossip.messages import MESSAGE_BYTES_MAX, Records, decode_message
from protocol.identity import Identity
from protocol.libp2p.multistream import Listener
from protocol.records import open_record
from protocol.wire.inference import PROTOCOL_ID, REQUEST_BYTES_MAX, decode_request

CALM = Run(1.0, 4.0, 1000, 0, 0.2, 1.0, 1.0)


def attacked(run, attack="stream-gaps"):
    return Attacked(attack, "qh3", 10.0, CALM, None, run)


def test_every_attack_that_is_listed_is_made():
    assert ATTACKS == MADE


def test_spoofed_initials_are_first_packets_that_decrypt():
    made = RAW["spoofed-initials"].make(3)
    cids = set()
    for data in made:
        header = pull_quic_header(Buffer(data=data), host_cid_length=8)
        cids.add(header.destination_cid)
        pair = CryptoPair()
        pair.setup_initial(header.destination_cid, is_client=False, version=1)
        offset = data.index(header.destination_cid) + 8 + 1 + 8 + 1 + 2
        end = offset + (int.from_bytes(data[offset - 2 : offset], "big") & 0x3FFF)  # padding stands behind the packet
        _, plain, number = pair.decrypt_packet(data[:end], offset, 0)
        assert plain[0] == 0x06
        assert number == 0
    assert len(cids) == len(made) == 3
    assert all(len(data) >= 1200 for data in made)


def test_junk_is_of_both_kinds_of_header():
    made = RAW["junk"].make(10)
    assert {data[0] for data in made} == {0x40, 0xC0}


@pytest.mark.parametrize("name", [name for name in HELD if HELD[name]().frames.__qualname__ != "Held.frames"])
def test_attacks_with_frames_of_their_own_fill_packets(name):
    quic = OffenderQuic(Manner(make_chain(Identity(os.urandom(32)))), None)
    quic.connect(("192.0.2.1", 4433), 0.0)
    attack = HELD[name]()
    first, second = attack.frames(quic), attack.frames(quic)
    assert first
    assert len(first) <= 1150
    if name not in ("fake-acks", "early-acks"):
        assert first != second
        assert len(first) > 1100


def test_a_request_of_the_slow_is_a_request():
    listener = Listener(lambda name: name == PROTOCOL_ID)
    assert listener.receive_data(asked(500)) == PROTOCOL_ID
    decoder = FrameDecoder(REQUEST_BYTES_MAX)
    decoder.receive(listener.take_rest())
    request = decode_request(decoder.next_frame())
    assert request.model == "echo"
    assert len(request.tensors[0].data) == 500


def test_forged_records_are_whole_but_for_their_signatures():
    (message,) = forged("net", 100, 1)
    decoder = FrameDecoder(MESSAGE_BYTES_MAX)
    decoder.receive(message)
    records = decode_message(decoder.next_frame())
    assert isinstance(records, Records)
    assert len(records.envelopes) == 100
    for envelope in records.envelopes:
        with pytest.raises(RemoteProtocolError) as caught:
            open_record(envelope, "net", time.time())
        assert caught.value.code is ErrorCode.BAD_SIGNATURE


def test_goals_are_judged_by_the_control_and_by_what_the_node_says():
    cut = {"cuts_s": [0.1], "kept_out": 0}
    assert attacked(Run(1.0, 8.0, 1000, 0, 0.2, 64.0, 5.0, 0.0, 0, cut)).missed() == []
    assert attacked(Run(1.0, 8.1, 1000, 11, 0.2, 64.1, 5.1, 0.0, 0, cut)).missed() == ["p99", "lost", "memory", "datagram"]
    assert attacked(Run(1.0, 4.0, 1000, 0, 0.2, 0.0, 1.0, 0.0, 0, {"cuts_s": [5.1]})).missed() == ["cut"]
    assert attacked(Run(1.0, 4.0, 1000, 0, 0.2, 0.0, 1.0, 0.0, 0, {"cuts_s": []})).missed() == ["cut"]
    assert attacked(Run(1.0, 4.0, 1000, 0, 0.2, 0.0, 1.0, 0.0, 0, {"kept_out": 3})).missed() == []
    assert attacked(Run(1.0, 4.0, 1000, 0, 0.2, 0.0, 1.0), attack="junk").missed() == []


def test_of_several_tries_the_one_that_others_disturbed_least_counts():
    calm, noisy = attacked(Run(1.0, 9.0, 1, 0, 0.2, 0.0, 1.0, 0.01)), attacked(Run(1.0, 4.0, 1, 0, 0.2, 0.0, 1.0, 0.3))
    assert calmest([noisy, calm]) is calm


def test_percentiles_of_nothing_are_without_bound():
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([], 0.99) == float("inf")
