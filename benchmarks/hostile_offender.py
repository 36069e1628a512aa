"""The process that attacks: `python -m benchmarks.hostile_offender ATTACK HOST:PORT SINK_PORT NETWORK`.

It prepares, says so, and waits for orders on standard input, one a line: `{"aim": "node" or "sink", "seconds": 4}`. The order is
answered by a line that says what was sent and when the node cut it. Aimed at the sink, the same datagrams are made and sent at
the same pace to a socket that nobody reads: what that costs the machine is the control that an attack is measured against.
Whoever was cut comes back after a moment, as somebody who means it would.
"""

import json
import os
import socket
import struct
import sys
import time
from dataclasses import dataclass, field

import trio

from benchmarks.hostile_attacks import HELD, RAW, ForgedRecords, Held, OffenderQuic, Raw
from benchmarks.hostile_net import forged, node_host, offender_host
from mesh.conformance.registry import Unmet
from mesh.conformance.wire import Address, Connection, Link
from protocol.gossip import GOSSIP_PROTOCOL
from protocol.identity import Identity
from protocol.libp2p.identify import IDENTIFY_PROTOCOL
from protocol.libp2p.ping import PING_PROTOCOL

PREPARED = 8_000
"""Datagrams made beforehand, a count; they are sent again from the start when all have been sent."""

TICK_S = 0.005
"""Time between two salvos, in seconds."""

BACK_S = 0.25
"""When the offender comes back after it was cut, in seconds."""

BACK_INITIAL_S = 0.05
"""The same for one that needs no handshake."""

HANDSHAKE_S = 2.0
"""Longest wait for a handshake, in seconds; after it the offender counts as kept out."""

SILENCE_S = 1.5
"""A node that says nothing for so long, in seconds, while it is being talked to has cut the offender without a word."""

_IP_PKTINFO = 8
"""Control message that chooses the source address of a datagram (ip(7))."""


@dataclass(slots=True)
class Outcome:
    """What became of one order.

    Attributes:
        sent: datagrams or steps.
        bytes: in them.
        cuts_s: how long the offender had been at it each time it was cut.
        kept_out: handshakes that the node refused or did not answer.
        why: what the node gave as its reason the first time.
    """

    sent: int = 0
    bytes: int = 0
    cuts_s: list[float] = field(default_factory=list)
    kept_out: int = 0
    why: str = ""

    def json(self) -> str:
        """One line."""
        return json.dumps(
            {"sent": self.sent, "bytes": self.bytes, "cuts_s": self.cuts_s, "kept_out": self.kept_out, "why": self.why}
        )


def attack_raw(attack: Raw, prepared: list[bytes], target: Address, seconds: float) -> Outcome:
    """Send prepared datagrams at the attack's pace."""
    outcome = Outcome()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw:
        raw.bind(("0.0.0.0" if attack.spoofed else offender_host(), 0))
        raw.setblocking(False)
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            due = int(passed * attack.per_second) + 1
            while outcome.sent < due:
                data = prepared[outcome.sent % len(prepared)]
                try:
                    if attack.spoofed:
                        raw.sendmsg([data], [(socket.IPPROTO_IP, _IP_PKTINFO, _source(outcome.sent))], 0, target)
                    else:
                        raw.sendto(data, target)
                except BlockingIOError:
                    break
                outcome.sent += 1
                outcome.bytes += len(data)
            time.sleep(0.001)
    return outcome


def _source(number: int) -> bytes:
    """A struct in_pktinfo with a source address of a network of its own for each number."""
    return struct.pack("@i4s4s", 0, forged(number), bytes(4))


class OneLink(Link):
    """A socket whose datagrams all belong to the newest connection, and which may send salvos elsewhere."""

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.connection: Connection | None = None

    def _take(self, data: bytes, address: Address) -> None:
        if self.connection is not None:
            self.connection.receive(data, address)


async def attack_held(make: type[Held], node: Address, aim: Address, network: str, seconds: float) -> Outcome:
    """Make an attack on connections of its own, again and again."""
    outcome = Outcome()
    attack = make(network) if issubclass(make, ForgedRecords) else make()
    identity = Identity(os.urandom(32))
    ends = trio.current_time() + seconds
    async with trio.open_nursery() as nursery:
        link = OneLink(offender_host())
        nursery.start_soon(link.run)
        nursery.start_soon(keep_time, link)
        while trio.current_time() < ends:
            connection = await _connect(attack, identity, link, node, outcome)
            if connection is not None:
                with trio.move_on_at(ends + 1.0):
                    await _strike(attack, connection, link, aim, ends, outcome, is_aimed=aim == node)
            await trio.sleep(BACK_INITIAL_S if attack.initial else BACK_S)
        if link.connection is not None:
            link.connection.close()
        nursery.cancel_scope.cancel()
    link.close()
    return outcome


async def keep_time(link: OneLink) -> None:
    """Fire the timers of the newest connection."""
    while True:
        await trio.sleep(TICK_S)
        connection = link.connection
        if connection is not None and not connection.mute and connection.end is None:
            timer, now = connection.quic.get_timer(), trio.current_time()
            if timer is not None and timer <= now:
                connection.quic.handle_timer(now + 1e-6)
                connection.flush()


async def _connect(attack: Held, identity: Identity, link: OneLink, node: Address, outcome: Outcome) -> Connection | None:
    quic = OffenderQuic(attack.manner(identity), None)
    connection = Connection(quic, link, (GOSSIP_PROTOCOL, PING_PROTOCOL, IDENTIFY_PROTOCOL), HANDSHAKE_S)
    connection.mute = attack.initial
    link.connection = connection
    quic.connect(node, trio.current_time())
    if attack.initial:
        return connection
    connection.flush()
    try:
        return await connection.established()
    except Unmet as fault:
        outcome.kept_out += 1
        outcome.why = outcome.why or str(fault.seen)
        return None


async def _strike(
    attack: Held, connection: Connection, link: OneLink, aim: Address, ends: float, outcome: Outcome, *, is_aimed: bool
) -> None:
    """Attack over one connection until the node ends it or the time is over."""
    quic = connection.quic
    assert isinstance(quic, OffenderQuic)
    began = heard_at = trio.current_time()
    steps = heard = 0
    try:
        await attack.begin(connection)
        while (now := trio.current_time()) < ends:
            if connection.n_datagrams_in > heard:
                heard, heard_at = connection.n_datagrams_in, now
            streams = attack.streams()
            is_cut = connection.end is not None or (bool(streams) and all(stream.is_over for stream in streams))
            if is_cut or (is_aimed and steps > 0 and not streams and now - heard_at > SILENCE_S):
                break
            due = int((now - began) * attack.per_second) + 1
            while steps < due and connection.end is None:
                steps += 1
                frames = attack.frames(quic)
                if not frames:
                    attack.send(connection)
                    continue
                data = quic.packet(frames, initial=attack.initial)
                outcome.bytes += len(data)
                link.send(data, aim)
            await trio.sleep(TICK_S)
    except Unmet as fault:
        outcome.why = outcome.why or str(fault)
    outcome.sent += steps
    now = trio.current_time()
    streams = attack.streams()
    if connection.end is not None and connection.end.by_node:
        outcome.cuts_s.append(now - began)
        outcome.why = outcome.why or str(connection.end)
    elif streams and all(stream.is_over for stream in streams):
        outcome.cuts_s.append(now - began)
        codes = sorted({str(stream.reset_code) for stream in streams})
        outcome.why = outcome.why or f"its streams were ended ({', '.join(codes)})"
    elif now < ends and not heard:
        outcome.kept_out += 1
    elif now < ends and connection.end is None:
        outcome.cuts_s.append(heard_at - began)
        outcome.why = outcome.why or "the node fell silent"
    elif connection.end is not None:
        outcome.why = outcome.why or f"the offender's own library gave up: {connection.end}"


def main() -> None:
    """Prepares, and carries out orders."""
    name, where, sink_port, network = sys.argv[1:5]
    host, _, port = where.rpartition(":")
    targets: dict[str, Address] = {"node": (host, int(port)), "sink": (node_host(), int(sink_port))}
    prepared = RAW[name].make(PREPARED) if name in RAW else []
    print(json.dumps({"ready": name}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        aim, seconds = targets[order["aim"]], float(order["seconds"])
        if name in RAW:
            outcome = attack_raw(RAW[name], prepared, aim, seconds)
        else:
            outcome = trio.run(attack_held, HELD[name], targets["node"], aim, network, seconds)
        print(outcome.json(), flush=True)


if __name__ == "__main__":
    main()
