"""Chapter 5: probes and their echoes.

Spec: docs/spec/05-coordinates.md.
"""

import math
import os

import trio

from mesh.conformance.gossip import joined, talk
from mesh.conformance.peer import ScriptedPeer
from mesh.conformance.registry import NotApplicable, Unmet, case, expect
from mesh.conformance.wire import ECHO, ECHO_THREE, PROBE, PROBE_THREE, THIRD_LEG, Connection
from protocol.coordinates import Coordinate
from protocol.errors import ErrorCode
from protocol.places import PLACE_BYTES, decode_place, encode_place

PROBE_BYTES = 9
"""Length of a probe in bytes (ISO-PROBE-018)."""

BURST = 64
"""Probes that are answered at once (ISO-PROBE-005)."""

COORDINATE_S_MAX = 10.0
"""Farthest component and greatest height of a coordinate, in seconds (ISO-COORD-001)."""

MOVE_S_MAX = 0.1
"""How far one sample moves a coordinate, in seconds (ISO-COORD-004)."""


def echoes(connection: Connection, nonce: bytes) -> list[bytes]:
    """The echoes of one nonce so far."""
    return [frame for frame in connection.frames if frame[:1] == ECHO and frame[1:9] == nonce]


def probes(connection: Connection) -> list[bytes]:
    """The node's probes so far."""
    return [frame for frame in connection.frames if frame[:1] == PROBE]


@case("ISO-PROBE-004", "ISO-PROBE-018", "ISO-COORD-001")
async def a_probe_is_echoed(peer: ScriptedPeer) -> None:
    """At once, with its nonce, in 9 or 37 bytes; a place that is told is plausible."""
    gossip = await talk(peer)
    connection = gossip.connection
    nonce = os.urandom(8)
    began = trio.current_time()
    connection.send_frame(PROBE + nonce)
    await connection.until(lambda: echoes(connection, nonce), "an echo with the nonce of the probe", 1.0 + peer.subject.rtt_s)
    took_s = trio.current_time() - began
    expect(took_s < 0.5 + 2 * peer.subject.rtt_s, "an echo at once", f"{took_s:.3f} s")
    (echo,) = echoes(connection, nonce)
    expect(len(echo) in {PROBE_BYTES, PROBE_BYTES + PLACE_BYTES}, "an echo of 9 or 37 bytes", len(echo))
    if len(echo) > PROBE_BYTES:
        place = decode_place(echo[PROBE_BYTES:])
        if place is None:
            raise Unmet("a place that keeps ISO-COORD-001", echo[PROBE_BYTES:].hex())
        plausible = all(math.isfinite(part) and abs(part) <= COORDINATE_S_MAX for part in place.vector)
        expect(plausible and 0 <= place.height_s <= COORDINATE_S_MAX, "a place that keeps ISO-COORD-001", place)


@case("ISO-PROBE-018")
async def probes_of_another_length_are_malformed(peer: ScriptedPeer) -> None:
    """Kinds 1 to 5 with a length that is not theirs, and an empty datagram."""
    peer.needs_gossip()
    for what, frame in {
        "a probe of 10 bytes": PROBE + bytes(9),
        "a probe of 1 byte": PROBE,
        "an echo of 10 bytes": ECHO + bytes(9),
        "an echo of 38 bytes": ECHO + bytes(37),
        "a probe of three legs of 10 bytes": PROBE_THREE + bytes(9),
        "an echo of three legs of 16 bytes": ECHO_THREE + bytes(15),
        "a third leg of 10 bytes": THIRD_LEG + bytes(9),
        "an empty datagram": b"",
    }.items():
        gossip = await talk(peer, peer.stranger())
        gossip.connection.send_frame(frame)
        await gossip.blamed(ErrorCode.MALFORMED, what)


@case("ISO-PROBE-002", "ISO-CONV-001")
async def datagrams_of_later_kinds_are_ignored(peer: ScriptedPeer) -> None:
    """Kind 0 and kinds from 6 on, of any length."""
    gossip = await talk(peer)
    for kind in (0, 6, 77, 255):
        for size in (0, 8, 36, 900):
            gossip.connection.send_frame(bytes([kind]) + bytes(size))
    await gossip.settled()
    await peer.nothing_happens(gossip.connection)


@case("ISO-PROBE-003")
async def echoes_of_nothing_are_ignored(peer: ScriptedPeer) -> None:
    """An unknown nonce, and one that was echoed before, are no fault and no sample."""
    gossip = await talk(peer)
    connection = gossip.connection
    await connection.until(lambda: probes(connection), "a probe of the node")
    nonce = probes(connection)[0][1:9]
    for _ in range(3):
        connection.send_frame(ECHO + nonce)
        connection.send_frame(ECHO + os.urandom(8))
    await gossip.settled()
    await peer.nothing_happens(connection)


@case("ISO-PROBE-003", "ISO-PROBE-018")
async def nonces_are_64_bits_that_do_not_repeat(peer: ScriptedPeer) -> None:
    """The node's probes have nine bytes, and no two of them, to whomever, share a nonce."""
    nonces: list[bytes] = []
    gossips = [await talk(peer, peer.stranger()) for _ in range(3)]
    for gossip in gossips:
        connection = gossip.connection
        await connection.until(lambda connection=connection: len(probes(connection)) >= 2, "two probes")  # type: ignore[misc]
        expect(all(len(probe) == PROBE_BYTES for probe in probes(connection)), "probes of 9 bytes", "another length")
        nonces += [probe[1:9] for probe in probes(connection)]
    expect(len(set(nonces)) == len(nonces), "nonces that do not repeat", [nonce.hex() for nonce in nonces])
    expect(len({nonce[:4] for nonce in nonces}) == len(nonces), "nonces that nobody predicts", [n.hex() for n in nonces])


def echoes_of_three(connection: Connection, nonce: bytes) -> list[bytes]:
    """The echoes of three legs of one nonce so far."""
    return [frame for frame in connection.frames if frame[:1] == ECHO_THREE and frame[1:9] == nonce]


@case("ISO-PROBE-004", "ISO-PROBE-018", "ISO-PROBE-021")
async def a_probe_of_three_legs_is_echoed_with_another_nonce(peer: ScriptedPeer) -> None:
    """In 17 or 45 bytes, with a nonce that nobody predicts; a third leg of another nonce is no fault."""
    gossip = await talk(peer)
    connection = gossip.connection
    own: list[bytes] = []
    for _ in range(4):
        nonce = os.urandom(8)
        connection.send_frame(PROBE_THREE + nonce)
        await connection.until(lambda nonce=nonce: echoes_of_three(connection, nonce), "an echo of kind 4")  # type: ignore[misc]
        (echo,) = echoes_of_three(connection, nonce)
        expect(len(echo) in {17, 17 + PLACE_BYTES}, "an echo of 17 or 45 bytes", len(echo))
        own.append(echo[9:17])
    expect(len({nonce[:4] for nonce in own}) == len(own), "nonces that nobody predicts", [nonce.hex() for nonce in own])
    for nonce in (os.urandom(8), own[0], own[0], own[1]):
        connection.send_frame(THIRD_LEG + nonce)
    await gossip.settled()
    await peer.nothing_happens(connection)


@case("ISO-PROBE-020")
async def an_echo_of_three_legs_is_answered_once(peer: ScriptedPeer) -> None:
    """With its own nonce; an echo of no probe, and another one of the same, are not."""
    gossip = await talk(peer, settle=False)
    connection = gossip.connection
    connection.echoes = False
    answered = len(probes(connection))
    await connection.until(lambda: len(probes(connection)) > answered, "a probe of the node that was not answered yet")
    nonce, own = probes(connection)[-1][1:9], os.urandom(8)
    connection.send_frame(ECHO_THREE + os.urandom(8) + os.urandom(8))
    connection.send_frame(ECHO_THREE + nonce + own)
    connection.send_frame(ECHO_THREE + nonce + os.urandom(8))
    connection.echoes = True

    def legs() -> list[bytes]:
        return [frame for frame in connection.frames if frame[:1] == THIRD_LEG]

    await connection.until(legs, "a third leg")
    await gossip.settled()
    expect([leg[1:9] for leg in legs()] == [own], "one third leg with the nonce of the echo", [leg.hex() for leg in legs()])
    expect(len(legs()[0]) in {PROBE_BYTES, PROBE_BYTES + PLACE_BYTES}, "a third leg of 9 or 37 bytes", len(legs()[0]))


@case("ISO-PROBE-022")
async def who_does_not_speak_three_legs_is_not_asked_for_them(peer: ScriptedPeer) -> None:
    """A peer that has said nothing of them gets kinds 1 and 2 alone, while it is probed as a new one is."""
    gossip = await talk(peer)
    await gossip.connection.until(lambda: len(probes(gossip.connection)) >= 3, "three probes")
    later = [frame for frame in gossip.connection.frames if frame[:1] in (PROBE_THREE, ECHO_THREE, THIRD_LEG)]
    expect(not later, "no datagrams of kinds 3 to 5", [frame.hex() for frame in later])


@case("ISO-PROBE-005")
async def a_burst_of_probes_is_answered(peer: ScriptedPeer) -> None:
    """Sixty-four at once bring sixty-four echoes; many more do not cost the connection at once."""
    gossip = await talk(peer)
    connection = gossip.connection
    nonces = [os.urandom(8) for _ in range(BURST)]
    for start in range(0, BURST, 16):  # in four packets' worth, so that no queue on the way is full
        for nonce in nonces[start : start + 16]:
            connection.send_frame(PROBE + nonce)
        await trio.sleep(0.02)
    await connection.until(lambda: all(echoes(connection, nonce) for nonce in nonces), f"{BURST} echoes")


@case("ISO-PROBE-010", alone=True)
async def links_of_the_mesh_are_watched(peer: ScriptedPeer) -> None:
    """Over a link of the mesh a probe comes within the time in which a dead peer must be suspected."""
    gossip = await joined(peer)
    await trio.sleep(4.5)  # the probes of a new connection are over
    n_probes = len(probes(gossip.connection))
    await gossip.connection.until(lambda: len(probes(gossip.connection)) > n_probes, "a probe of who is watched", 2.0)


@case("ISO-PROBE-019", "ISO-COORD-001")
async def a_place_that_cannot_be_is_no_fault(peer: ScriptedPeer) -> None:
    """Echoes with places far beyond all bounds cost nothing, and leave the node at a place that can be."""
    gossip = await talk(peer)
    connection = gossip.connection
    await connection.until(lambda: probes(connection), "a probe of the node")
    for nonce in [probe[1:9] for probe in probes(connection)]:
        connection.send_frame(ECHO + nonce + b"\x7f\xff\xff" * 8 + b"\xff" * 4)
    await gossip.settled()
    await peer.nothing_happens(connection)
    await place_of_node(connection)


async def place_of_node(connection: Connection) -> tuple[float, ...]:
    """Where the node says that it is, as its vector.

    Raises:
        NotApplicable: it does not say.
    """
    nonce = os.urandom(8)
    connection.send_frame(PROBE + nonce)
    await connection.until(lambda: echoes(connection, nonce), "an echo")
    place = decode_place(echoes(connection, nonce)[0][PROBE_BYTES:])
    if place is None:
        raise NotApplicable("the node does not put its place into echoes")
    return place.vector


@case("ISO-COORD-004", alone=True)
async def one_sample_moves_a_place_by_a_tenth_of_a_second_at_most(peer: ScriptedPeer) -> None:
    """A peer that is sure to be far away, and answers late, moves the node no farther for each of its samples."""
    gossip = await talk(peer, settle=False)
    connection = gossip.connection
    connection.echoes = False
    before = await place_of_node(connection)
    far = encode_place(Coordinate((5.0,) + (0.0,) * 7, 0.0, 0.0))
    answered: list[bytes] = []
    with trio.move_on_after(2.5):
        while True:
            fresh = [probe[1:9] for probe in probes(connection) if probe[1:9] not in answered]
            await trio.sleep(0.3)
            for nonce in fresh:
                answered.append(nonce)
                connection.send_frame(ECHO + nonce + far)
    expect(answered, "probes to answer", "none")
    moved_s = math.dist(before, await place_of_node(connection))
    allowed_s = MOVE_S_MAX * len(answered) + 0.01
    expect(moved_s <= allowed_s, f"a move of at most {allowed_s:.2f} s after {len(answered)} samples", f"{moved_s:.3f} s")
