"""Wrong behaviours of a node in records, gossip, probes and membership, each by name, for the suite to catch."""

import os
from dataclasses import replace
from itertools import count

from transport_faults import fault

import mesh.transport.connection
import protocol.gossip.conversation
import protocol.gossip.machine
import protocol.node.signing
import protocol.records.envelope
from mesh.service import Service
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.gossip.beats import encode_beat
from protocol.gossip.messages import (
    BeatTold,
    Digest,
    Graft,
    Keep,
    Prune,
    Records,
    ScopeTold,
    Want,
    decode_message,
    encode_message,
)
from protocol.gossip.reader import GossipReader
from protocol.load import Beat
from protocol.records import RecordKind, Verdict, peek
from protocol.wire import PackingLimits, pack, unpack

WIDE = PackingLimits(size_bytes_max=1 << 20, depth_max=32, values_max=100_000)


def hearing(service: Service, change) -> None:
    """Have `change` decide what the node hears of each message; None for nothing."""
    hear = service.node.handle_message

    def handle(peer_id, payload, now):
        heard = change(payload, peer_id)
        if heard is not None:
            hear(peer_id, heard, now)

    service.node.handle_message = handle


def saying(service: Service, change) -> None:
    """Have `change` decide what the node says; None for nothing."""
    post = service.driver._post

    def say(peer_id, payload):
        said = change(payload, peer_id)
        if said is not None:
            post(peer_id, said)

    service.driver._post = say


def understood(payload: bytes):
    try:
        return decode_message(payload)
    except RemoteProtocolError:
        return None


def deaf_to(service: Service, *kinds) -> None:
    hearing(service, lambda payload, _peer: None if isinstance(understood(payload), kinds) else payload)


def mute_of(service: Service, *kinds) -> None:
    saying(service, lambda payload, _peer: None if isinstance(understood(payload), kinds) else payload)


def read_with(service: Service, reader: GossipReader) -> None:
    service.node.gossip.reader = reader


# Records


@fault("takes records of any network", "ISO-REC-007", "ISO-GOS-014")
def _(service, patch):
    check = protocol.records.envelope.check_network_and_time

    def lenient(header, network_id, wall_s, config):
        check(header, header.network_id, wall_s, config)

    patch.setattr(protocol.records.envelope, "check_network_and_time", lenient)


@fault("takes records of any time", "ISO-REC-008", "ISO-GOS-010")
def _(service, patch):
    check = protocol.records.envelope.check_network_and_time

    def lenient(header, network_id, wall_s, config):
        check(header, network_id, (header.issued_s + header.expires_s) / 2, config)

    patch.setattr(protocol.records.envelope, "check_network_and_time", lenient)
    config = service.node.table.config
    service.node.table.config = replace(config, records=replace(config.records, skew_s=1e6))


@fault("passes on records that it has not verified", "ISO-REC-010", "ISO-GOS-010", "ISO-GOS-014")
def _(service, patch):
    patch.setattr(protocol.records.envelope, "verify_signature", lambda *_args: True)


@fault("encodes records again before it passes them on", "ISO-REC-005")
def _(service, patch):
    def recoded(payload, _peer):
        message = understood(payload)
        if not isinstance(message, Records):
            return payload
        envelopes = tuple(envelope[:64] + pack(unpack(envelope[64:], WIDE), WIDE) for envelope in message.envelopes)
        return encode_message(Records(envelopes))

    saying(service, recoded)


@fault("drops what a later version adds to a header", "ISO-REC-005", "ISO-REC-011")
def _(service, patch):
    def cut(payload, _peer):
        message = understood(payload)
        if not isinstance(message, Records):
            return payload
        envelopes = tuple(envelope[:64] + pack(unpack(envelope[64:], WIDE)[:7], WIDE) for envelope in message.envelopes)
        return encode_message(Records(envelopes))

    saying(service, cut)


@fault("refuses cards with unknown fields", "ISO-REC-012", "ISO-REC-005")
def _(service, patch):
    class Strict(GossipReader):
        def open(self, envelope, network_id, wall_s, config):
            record = super().open(envelope, network_id, wall_s, config)
            if record.payload.extra:
                raise RemoteProtocolError(ErrorCode.MALFORMED, "an unknown field")
            return record

    read_with(service, Strict())


@fault("blames for kinds of records that it does not know", "ISO-REC-006", "ISO-REC-030", "ISO-GOS-013", "ISO-ID-008")
def _(service, patch):
    class Strict(GossipReader):
        def peek(self, envelope, config):
            try:
                return super().peek(envelope, config)
            except RemoteProtocolError as error:
                raise RemoteProtocolError(ErrorCode.MALFORMED, error.detail) from error

    read_with(service, Strict())


@fault("takes headers of any size", "ISO-REC-001")
def _(service, patch):
    class Lax(GossipReader):
        def peek(self, envelope, config):
            return super().peek(envelope, replace(config, card_bytes_max=config.edges_bytes_max))

    read_with(service, Lax())


@fault("takes no newer card of who is known", "ISO-REC-018")
def _(service, patch):
    is_news = service.node.gossip._is_news
    service.node.gossip._is_news = lambda key, header, envelope: (
        service.node.table.record_of(key) is None and is_news(key, header, envelope)
    )


@fault("blames who passes on an older record", "ISO-REC-032", "ISO-REC-018")
def _(service, patch):
    is_news = service.node.gossip._is_news

    def blames(key, header, envelope):
        if header.sequence < service.node.table.sequence_of(key):
            raise RemoteProtocolError(ErrorCode.FLOODING, "old")
        return is_news(key, header, envelope)

    service.node.gossip._is_news = blames


@fault("blames for payloads of a later version", "ISO-GOS-013", "ISO-REC-013", "ISO-REC-001")
def _(service, patch):
    class Strict(GossipReader):
        def open(self, envelope, network_id, wall_s, config):
            try:
                return super().open(envelope, network_id, wall_s, config)
            except RemoteProtocolError as error:
                raise RemoteProtocolError(ErrorCode.BAD_SIGNATURE, error.detail) from error

    read_with(service, Strict())


# Gossip


@fault("blames nobody", "ISO-GOS-014", "ISO-GOS-004", "ISO-REC-010", "ISO-REC-007", "ISO-REC-002")
def _(service, patch):
    service.node.gossip._blame = lambda _peer_id, _peer, _code: None


@fault("blames with one code for everything", "ISO-GOS-014", "ISO-GOS-004", "ISO-REC-010", "ISO-REC-007")
def _(service, patch):
    blame = service.node.gossip._blame
    service.node.gossip._blame = lambda peer_id, peer, _code: blame(peer_id, peer, ErrorCode.MALFORMED)


@fault("takes what comes behind a forgery", "ISO-GOS-014")
def _(service, patch):
    def good_first(payload, _peer):
        message = understood(payload)
        return encode_message(Records(message.envelopes[::-1])) if isinstance(message, Records) else payload

    hearing(service, good_first)


@fault("does not close a flooding peer", "ISO-GOS-011")
def _(service, patch):
    service.node.gossip._within = lambda *_args: True


@fault("ends the connection at a message of a later type", "ISO-GOS-003", "ISO-CONV-001")
def _(service, patch):
    class Strict(GossipReader):
        def message(self, payload):
            message = super().message(payload)
            if message is None:
                raise RemoteProtocolError(ErrorCode.MALFORMED, "an unknown type")
            return message

    read_with(service, Strict())


@fault("answers a root hash that is its own", "ISO-GOS-017", "ISO-GOS-035")
def _(service, patch):
    patch.setattr(type(service.node.table), "root_hash", lambda _self: os.urandom(8))
    gossip = service.node.gossip
    exchange = gossip._handle_exchange

    def handle(peer_id, peer, message, now):
        if isinstance(message, Digest) and len(message.hashes) == 1:
            message = Digest((os.urandom(8),))
        exchange(peer_id, peer, message, now)

    gossip._handle_exchange = handle


@fault("answers no root hash", "ISO-GOS-017", "ISO-GOS-018")
def _(service, patch):
    deaf_to(service, Digest)


@fault("sends a digest once and never again", "ISO-GOS-016")
def _(service, patch):
    told = set()

    def once(payload, peer_id):
        if isinstance(understood(payload), Digest):
            if peer_id in told:
                return None
            told.add(peer_id)
        return payload

    saying(service, once)


@fault("wants nothing that it lacks", "ISO-GOS-007")
def _(service, patch):
    mute_of(service, Want)


@fault("sends one of the records that are wanted and no other", "ISO-GOS-008", "ISO-REC-005", "ISO-REC-018", "ISO-GOS-007")
def _(service, patch):
    serve = service.node.gossip._serve
    own = service.node.peer_id
    service.node.gossip._serve = lambda peer_id, peer, records, now: serve(
        peer_id, peer, [record for record in records if record.peer_id == own and record.kind is RecordKind.VERDICT], now
    )


@fault("ignores grafts", "ISO-GOS-020", "ISO-GOS-021")
def _(service, patch):
    deaf_to(service, Graft)
    mute_of(service, Graft)


@fault("holds any number of links", "ISO-GOS-020", "ISO-GOS-021")
def _(service, patch):
    overlay = service.node.gossip.overlay
    overlay._config = replace(overlay._config, degree_max=1000)


@fault("goes on pushing over links that were given back", "ISO-GOS-021")
def _(service, patch):
    deaf_to(service, Prune)


@fault("refuses who gave a link back", "ISO-GOS-022")
def _(service, patch):
    overlay = service.node.gossip.overlay
    prune = overlay.handle_prune

    def offended(peer_id, now):
        overlay._refusing[peer_id] = now + 60.0
        return prune(peer_id, now)

    overlay.handle_prune = offended


@fault("prunes who asks twice", "ISO-GOS-020", "ISO-GOS-022")
def _(service, patch):
    overlay = service.node.gossip.overlay
    graft = overlay.handle_graft
    asked = set()

    def once(peer_id, now):
        again = peer_id in asked
        asked.add(peer_id)
        return not again and graft(peer_id, now)

    overlay.handle_graft = once


@fault("sends news back to whom it came from", "ISO-GOS-025")
def _(service, patch):
    spreading = service.node.gossip._spreading
    tell = spreading._tell
    spreading._tell = lambda record, peers, except_for, replaced: tell(record, peers, (), replaced)


@fault("pushes cards that are only renewed", "ISO-GOS-026")
def _(service, patch):
    patch.setattr(protocol.gossip.machine.Accepted, "can_wait", property(lambda _self: False))


@fault("sends records to who has said that it has them", "ISO-GOS-025", "ISO-GOS-028")
def _(service, patch):
    patch.setattr(protocol.gossip.conversation.Conversation, "note_has", lambda _self, _entries, _most: None)


@fault("passes on the edges of others", "ISO-GOS-029", "ISO-REC-026")
def _(service, patch):
    def pass_on(payload, peer_id):
        message = understood(payload)
        if isinstance(message, Records):
            edges = []
            for envelope in message.envelopes:
                try:
                    edges += [envelope] if peek(envelope).kind is RecordKind.EDGES else []
                except RemoteProtocolError:
                    continue
            for other in service.driver._outboxes if edges else ():
                if other != peer_id:
                    service.driver._post(other, encode_message(Records(tuple(edges))))
        return payload

    hearing(service, pass_on)


@fault("does not say whether it keeps a connection", "ISO-GOS-030")
def _(service, patch):
    mute_of(service, Keep)


@fault("asks once for a link and not again on a new stream", "ISO-GOS-024")
def _(service, patch):
    asked = set()

    def once(payload, peer_id):
        if isinstance(understood(payload), Graft):
            if peer_id in asked:
                return None
            asked.add(peer_id)
        return payload

    saying(service, once)


@fault("tells its beats to everybody", "ISO-GOS-031")
def _(service, patch):
    attend = service.driver._attend

    def and_tell(peer_id):
        attend(peer_id)
        service.driver._post(peer_id, encode_message(BeatTold(encode_beat(Beat(draining=False, loads=())))))

    service.driver._attend = and_tell


@fault("tells its beats to nobody", "ISO-GOS-031")
def _(service, patch):
    mute_of(service, BeatTold)


@fault("takes beats that do not decode", "ISO-GOS-032", "ISO-GOS-004", "ISO-GOS-014")
def _(service, patch):
    class Lax(GossipReader):
        def beat(self, payload):
            return Beat(draining=False, loads=())

    read_with(service, Lax())


@fault("takes no notice of scopes", "ISO-GOS-034", "ISO-GOS-035", "ISO-GOS-036")
def _(service, patch):
    deaf_to(service, ScopeTold)


@fault("answers a search with all that it holds", "ISO-GOS-038")
def _(service, patch):
    service.node.gossip.horizon.found = lambda _search, _scope: service.node.table.cards()


@fault("announces no measured edges", "ISO-GOS-047")
def _(service, patch):
    patch.setattr("protocol.gossip.spreading.is_spread_edges", lambda _record: False)


@fault("takes measured edges of any form", "ISO-REC-033")
def _(service, patch):
    patch.setattr("protocol.records.mapping.check_measured", lambda _packed, _count: None)


# Probes and coordinates


def sending(patch, change) -> None:
    """Have `change` decide what datagrams the node sends."""
    send = mesh.transport.connection.Connection.send_datagram

    def changed(self, data):
        told = change(data)
        return told is None or send(self, told)

    patch.setattr(mesh.transport.connection.Connection, "send_datagram", changed)


@fault("echoes another nonce", "ISO-PROBE-004", "ISO-PROBE-005", "ISO-COORD-004")
def _(service, patch):
    sending(patch, lambda data: data[:1] + data[1:9][::-1] + data[9:] if data[:1] == b"\x02" else data)


@fault("answers no probes", "ISO-PROBE-004", "ISO-PROBE-005")
def _(service, patch):
    sending(patch, lambda data: None if data[:1] == b"\x02" else data)


@fault("answers one probe in two", "ISO-PROBE-005")
def _(service, patch):
    numbers = count()
    sending(patch, lambda data: None if data[:1] == b"\x02" and next(numbers) % 2 else data)


@fault("tells a place that cannot be", "ISO-COORD-001", "ISO-PROBE-004")
def _(service, patch):
    sending(patch, lambda data: data[:9] + b"\x7f\xff\xff" * 8 + b"\xff" * 4 if data[:1] == b"\x02" else data)


@fault("draws nonces that anybody can guess", "ISO-PROBE-003")
def _(service, patch):
    numbers = count(1)
    sending(patch, lambda data: data[:1] + next(numbers).to_bytes(8, "big") if data[:1] == b"\x01" else data)


@fault("sends longer probes", "ISO-PROBE-003", "ISO-PROBE-018")
def _(service, patch):
    sending(patch, lambda data: data + b"\x00" if data[:1] == b"\x01" else data)


def receiving(service: Service, change) -> None:
    """Have `change` decide which datagrams the node hears."""
    take = service.node.handle_datagram

    def handle(peer_id, payload, received_at, now):
        heard = change(peer_id, payload)
        if heard is not None:
            take(peer_id, heard, received_at, now)

    service.node.handle_datagram = handle


@fault("takes probes of any length", "ISO-PROBE-018")
def _(service, patch):
    receiving(
        service, lambda _peer, payload: payload[:9].ljust(9, b"\x00") if payload[:1] in {b"\x01", b"\x02", b""} else payload
    )


@fault("ends the connection at datagrams of a later kind", "ISO-PROBE-002")
def _(service, patch):
    receiving(
        service, lambda _peer, payload: payload if payload[:1] in {b"\x01", b"\x02", b"\x03", b"\x04", b"\x05"} else b"\x01"
    )


@fault("echoes probes of three legs in the plain way", "ISO-PROBE-004", "ISO-PROBE-021")
def _(service, patch):
    sending(patch, lambda data: b"\x02" + data[1:9] if data[:1] == b"\x04" else data)


@fault("sends no third leg", "ISO-PROBE-020")
def _(service, patch):
    sending(patch, lambda data: None if data[:1] == b"\x05" else data)


@fault("returns another nonce in the third leg", "ISO-PROBE-020")
def _(service, patch):
    sending(patch, lambda data: data[:1] + data[1:9][::-1] + data[9:] if data[:1] == b"\x05" else data)


@fault("asks everybody for three legs", "ISO-PROBE-022", "ISO-PROBE-003")
def _(service, patch):
    sending(patch, lambda data: b"\x03" + data[1:] if data[:1] == b"\x01" else data)


@fault("watches nobody", "ISO-GOS-023", "ISO-PROBE-010", "ISO-PROBE-012")
def _(service, patch):
    service.node.probe.handle_watched = lambda _peer, _now, watched: None


@fault("suspects after ten seconds", "ISO-GOS-023", "ISO-PROBE-010", "ISO-PROBE-012")
def _(service, patch):
    service.node.probe._config = replace(service.node.probe._config, suspect_after_s=10.0)


@fault("moves as far as one sample says", "ISO-COORD-004")
def _(service, patch):
    vivaldi = service.node.vivaldi
    vivaldi._config = replace(vivaldi._config, force_s_max=10.0)


# Membership


@fault("does not refute", "ISO-MEMBER-028", "ISO-REC-024")
def _(service, patch):
    service.node.announcer.refute = lambda *_args: None


@fault("believes one accuser", "ISO-MEMBER-025", "ISO-PROBE-012", "ISO-MEMBER-026")
def _(service, patch):
    suspicion = service.node.suspicion
    suspicion._config = replace(suspicion._config, confirmations=1)


@fault("believes no accusers", "ISO-MEMBER-026", "ISO-PROBE-012", "ISO-MEMBER-028")
def _(service, patch):
    suspicion = service.node.suspicion
    suspicion._config = replace(suspicion._config, confirmations=1000)


@fault("accuses nobody", "ISO-MEMBER-022", "ISO-REC-027", "ISO-MEMBER-012")
def _(service, patch):
    service.node.suspicion.accuse = lambda *_args, **_named: None


@fault("takes no accusation back", "ISO-MEMBER-024", "ISO-MEMBER-012")
def _(service, patch):
    service.node.suspicion.acquit = lambda *_args: None


@fault("names one of those it accuses", "ISO-REC-027", "ISO-MEMBER-022", "ISO-MEMBER-024")
def _(service, patch):
    seal = protocol.node.signing.seal

    def shorter(identity, network_id, payload, *args):
        if isinstance(payload, Verdict):
            payload = replace(payload, accused=payload.accused[:1])
        return seal(identity, network_id, payload, *args)

    patch.setattr(protocol.node.signing, "seal", shorter)


@fault("gives work to who has said goodbye", "ISO-MEMBER-007", "ISO-MEMBER-012")
def _(service, patch):
    disconnected = service.node.handle_disconnected

    def forgetful(peer_id, code, now):
        if code is not ErrorCode.GOODBYE:
            disconnected(peer_id, code, now)

    service.node.handle_disconnected = forgetful
