"""What one core holds: everything reachable from it, counted once, as if it were alone in its process.

Cores of one world share the bytes of records, so the memory of the process divided by the cores would say too little. Counting
what is reachable from one core says what it would be alone, without the allocator's rounding, which a core of its own under
`tracemalloc` shows.
"""

import gc
import sys
import tracemalloc
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

from benchmarks.simulation.figures import Figure
from benchmarks.simulation.scenario import Options, config_for
from protocol.coordinates import Coordinate
from protocol.gossip import GossipReader
from protocol.identity import Identity
from protocol.membership import Connect
from protocol.multiaddr import Multiaddr
from protocol.node import Node, NodeConfig, ReserveSequences
from protocol.probe import KIND_ECHO, KIND_PROBE, SendDatagram
from protocol.records import Card, RecordKind, RecordPacker, Sequencer, open_record, seal
from sim.luck import Streams
from sim.process import FIRST_PORT, Process
from sim.world import ECHO, HARDWARE, WALL_S

NAME = "memory"
MIB = 1024.0 * 1024.0
PROBED_S = 35.0
"""Seconds for which the core is driven, so that its windows of probes are full."""
RTT_S = 0.02
"""Seconds of every round trip here."""
GOALS_MIB = {100: 1.0, 10_000: 8.0}
"""The goals at their sizes; that for 1,000,000 nodes is by arithmetic."""

_CODE = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)


def reachable_bytes(root: object) -> int:
    """Bytes of everything that can be reached from an object; code and classes, which are there once, are left out."""
    seen: set[int] = set()
    waiting, total = [root], 0
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, _CODE):
            continue
        seen.add(id(item))
        total += sys.getsizeof(item)
        waiting.extend(gc.get_referents(item))
    return total


def bytes_alone(process: Process) -> float:
    """Bytes reachable from the core of a process, its records counted as if nobody shared them; the core is made such for it."""
    process.node.gossip.reader = GossipReader()
    process.node.table.use_packer(RecordPacker())
    return float(reachable_bytes(process.node))


def measure(nodes: int, seed: int, options: Options) -> list[Figure]:
    """Makes one core that knows all peers it would in such a mesh, each record its own, and measures what it takes."""
    horizon = options.config.gossip.horizon
    most = int(horizon.peers * (1.0 + horizon.slack))  # past it a node drops what is far
    envelopes = _cards(min(nodes - 1, most), options.config.network_id)
    options.progress(0.4)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        node = _core(envelopes, seed, config_for(nodes, options.config), probed_s=2.0 if options.quick else PROBED_S)
        gc.collect()
        traced = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    options.progress(0.9)
    held = len(node.table.cards())
    meaning = (
        "what one core allocates (tracemalloc) that holds the cards of all nodes, or in a larger mesh the most that it may hold,"
        " each record its own bytes, with as many links as it opens and full windows of probes; QUIC's connections come on top"
        " (143 KiB each in aioquic)."
    )
    return [
        Figure(
            NAME, "memory of one core", traced / MIB, "MiB", nodes, meaning, goal=GOALS_MIB.get(nodes), note=f"{held} cards held"
        ),
        Figure(
            NAME,
            "memory of one core, counted",
            reachable_bytes(node) / MIB,
            "MiB",
            nodes,
            "the same by counting what is reachable from the core.",
            detail=True,
        ),
        Figure(
            NAME,
            "memory of one core per peer known",
            traced / max(1, held),
            "B",
            nodes,
            "the first divided by the cards it holds.",
            detail=True,
        ),
    ]


def _cards(count: int, network_id: str) -> list[bytes]:
    """Cards of so many peers, of ordinary size."""
    luck, envelopes = Streams(count).of("cards"), []
    for index in range(count):
        identity = Identity.from_seed(index.to_bytes(32, "big"))
        place = Coordinate(tuple(luck.uniform(-0.1, 0.1) for _ in range(_dimensions())), luck.uniform(0.0, 0.01), 0.1)
        address = Multiaddr("ip4", "192.0.2.1", FIRST_PORT + index, identity.peer_id)
        card = Card((address,), HARDWARE, (ECHO,), place, "isochrone/0.1.0")
        envelopes.append(seal(identity, network_id, card, 1, WALL_S, WALL_S + 600.0).envelope)
    return envelopes


def _dimensions() -> int:
    return NodeConfig().coordinates.dimensions


def _core(envelopes: list[bytes], seed: int, config: NodeConfig, probed_s: float) -> Node:
    """One core that was told all the cards and is connected to as many peers as it connects to."""
    identity = Identity.from_seed(b"m" * 32)
    node = Node(config, identity, Streams(seed).of("core"), Sequencer(0))
    address = Multiaddr("ip4", "192.0.2.1", FIRST_PORT, identity.peer_id)
    node.start((address,), HARDWARE, (ECHO,), WALL_S, 0.0)
    echoes: list[tuple[float, SendDatagram]] = []
    _drain(node, 0.0, echoes)
    for number, envelope in enumerate(envelopes):
        record = open_record(bytes(bytearray(envelope)), config.network_id, WALL_S, config.table.records)
        assert isinstance(record.payload, Card)
        assert record.kind is RecordKind.CARD
        if number < config.membership.connections_max:
            node.handle_connected(record.peer_id, 0.0)
        node.table.offer(record, 0.0, WALL_S)
        node.membership.handle_card(record.peer_id, record.payload.addresses, 0.0)
        _drain(node, 0.0, echoes)
    now = 0.0
    while now < probed_s:
        now = max(now, min([node.next_timer(), *(echoes[0][:1])] if echoes else [node.next_timer()]))
        while echoes and echoes[0][0] <= now:
            at, sent = echoes.pop(0)
            node.handle_datagram(sent.peer, bytes((KIND_ECHO,)) + sent.payload[1:], at, now)
        if node.next_timer() <= now:
            node.handle_timer(now)
        _drain(node, now, echoes)
    return node


def _drain(node: Node, now: float, echoes: list[tuple[float, SendDatagram]]) -> None:
    """Carries out what the core wants as far as it matters here: probes come back, numbers are kept, dials fail."""
    while (output := node.next_output()) is not None:
        match output:
            case SendDatagram(payload=payload) if payload[0] == KIND_PROBE:
                echoes.append((now + RTT_S, output))
            case ReserveSequences(upto):
                node.handle_reserved(upto, now)
            case Connect(target):
                node.handle_dial_failed(target, now)
            case _:
                pass
