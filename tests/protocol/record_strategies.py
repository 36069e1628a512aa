"""Hypothesis strategies for record values, and fixed examples of each kind."""

from hypothesis import strategies as st

from protocol.coordinates import DIMENSIONS, Coordinate
from protocol.identity import Identity
from protocol.inference import Feature
from protocol.load import Beat, ModelLoad
from protocol.multiaddr import Multiaddr
from protocol.records import (
    DEFAULT_RECORD_CONFIG,
    SEQUENCE_MAX,
    Accusation,
    Card,
    Edge,
    Edges,
    Gpu,
    Hardware,
    ModelOffer,
    Nic,
    RecordKind,
    Verdict,
)

NETWORK = "test-network"
WALL_S = 1_780_000_000.0
IDENTITIES = [Identity.from_seed(bytes([index]) * 32) for index in range(32)]
LIFETIME_S = {kind: DEFAULT_RECORD_CONFIG.lifetime_s_max_of(kind) for kind in RecordKind}
"""The longest lifetime of each kind, in seconds."""

names = st.text(max_size=40).filter(lambda text: len(text.encode("utf-8", "replace")) <= 100 and text.isprintable())
model_names = st.text("abcdefgh/-.0123456789", min_size=1, max_size=40)
sizes = st.integers(0, 2**53 - 1)
counts = st.integers(0, 1_000_000)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63 - 1), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | names
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
extras = st.dictionaries(names.map("x-".__add__), plain, max_size=3)


def seconds(largest: float) -> st.SearchStrategy[float]:
    return st.floats(0.0, largest)


addresses = st.builds(
    Multiaddr,
    protocol=st.just("ip4"),
    host=st.integers(0, 2**32 - 1).map(lambda n: ".".join(str(byte) for byte in n.to_bytes(4, "big"))),
    port=st.integers(1, 65535),
    peer_id=st.none() | st.sampled_from([identity.peer_id for identity in IDENTITIES]),
)
nodes = st.none() | counts
gpus = st.builds(Gpu, name=names, memory_bytes=sizes, bus_mbps=sizes, numa_node=nodes, extra=extras)
nics = st.builds(Nic, name=names, speed_mbps=sizes, mtu_bytes=sizes, bus_mbps=sizes, numa_node=nodes, extra=extras)
hardware = st.builds(
    Hardware,
    cpu_model=names,
    cpu_count=counts,
    memory_bytes=sizes,
    numa_nodes=counts,
    gpus=st.lists(gpus, max_size=2).map(tuple),
    nics=st.lists(nics, max_size=2).map(tuple),
    extra=extras,
)
offers = st.builds(
    ModelOffer,
    model=model_names,
    features=st.frozensets(st.sampled_from(Feature)),
    context_length=sizes,
    precision=names,
    memory_bytes=sizes,
    engine=names,
    digest=st.sampled_from([b"", bytes(32), bytes(range(32))]),
    extra=extras,
)
coordinates = st.builds(
    Coordinate,
    vector=st.tuples(*[st.floats(-60.0, 60.0)] * DIMENSIONS),
    height_s=seconds(60.0),
    error=seconds(1.5),
)
cards = st.builds(
    Card,
    addresses=st.lists(addresses, max_size=2).map(tuple),
    hardware=hardware,
    models=st.lists(offers, max_size=2).map(tuple),
    coordinate=st.none() | coordinates,
    agent=names,
    seal_key=st.sampled_from([b"", bytes(32), bytes(range(32))]),
    relays=st.booleans(),
    incarnation=st.integers(0, SEQUENCE_MAX),
    extra=extras,
)
edge_values = st.builds(
    Edge,
    peer_id=st.sampled_from([identity.peer_id for identity in IDENTITIES]),
    rtt_s=seconds(60.0),
    jitter_s=seconds(60.0),
    samples=st.integers(0, 65_535),
)
edges = st.builds(Edges, edges=st.lists(edge_values, max_size=16).map(tuple), extra=extras)
accusations = st.builds(Accusation, subject=st.binary(min_size=8, max_size=8), incarnation=st.integers(0, SEQUENCE_MAX))
verdicts = st.builds(Verdict, accused=st.lists(accusations, max_size=16).map(tuple), extra=extras)
payloads = cards | edges | verdicts

HARDWARE = Hardware(
    cpu_model="AMD EPYC 9654",
    cpu_count=192,
    memory_bytes=2**40,
    numa_nodes=2,
    gpus=(Gpu("NVIDIA H200", 151_000_000_000, extra={"pcie": "0000:17:00.0"}),),
    nics=(Nic("eth0", 100_000, 9000),),
)
CARD = Card(
    addresses=(Multiaddr("ip4", "192.0.2.7", 4001), Multiaddr("ip6", "2001:db8::7", 4001, IDENTITIES[0].peer_id)),
    hardware=HARDWARE,
    models=(ModelOffer("all-minilm-l6-v2", frozenset({Feature.EMBEDDINGS, Feature.TENSORS}), 512, "f32", 90_000_000, "onnx"),),
    coordinate=Coordinate(tuple(index / 1000 for index in range(DIMENSIONS)), 0.0005, 0.25),
    agent="isochrone/0.1.0",
    incarnation=7,
)
BEAT = Beat(draining=False, loads=(ModelLoad("all-minilm-l6-v2", 1, 0, 4, 0.0, 0.004, 0.0),))
VERDICT = Verdict(accused=(Accusation(bytes(range(8)), 1), Accusation(bytes(range(8, 16)), 2**40)))
EDGES = Edges(edges=(Edge(IDENTITIES[1].peer_id, 0.0123, 0.0004, 64), Edge(IDENTITIES[2].peer_id, 0.0502, 0.002, 8)))
EXAMPLES = (CARD, EDGES, VERDICT)
"""One payload of each kind of record."""
