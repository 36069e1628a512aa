"""Hypothesis strategies for the messages of gossip."""

from hypothesis import strategies as st

from protocol.coordinates import DIMENSIONS
from protocol.gossip.messages import (
    SOUGHT_MAX,
    BeatTold,
    Digest,
    DontWant,
    Entries,
    Graft,
    Keep,
    Prune,
    Records,
    ScopeTold,
    Seek,
    Want,
)
from protocol.records import SEQUENCE_MAX
from protocol.scope import RADIUS_S_MAX, Scope
from protocol.table import BUCKETS, RecordKey

hashes = st.binary(min_size=8, max_size=8)
keys = hashes.map(RecordKey)
entries = st.lists(st.tuples(keys, st.integers(1, SEQUENCE_MAX)), max_size=20).map(tuple)
places = st.lists(st.floats(-60.0, 60.0), min_size=DIMENSIONS, max_size=DIMENSIONS).map(tuple)
scopes = st.builds(Scope, places, st.floats(0.0, RADIUS_S_MAX))
messages = (
    st.builds(Records, st.lists(st.binary(max_size=300), max_size=5).map(tuple))
    | st.lists(st.tuples(st.binary(max_size=300), st.binary(min_size=64, max_size=64)), min_size=1, max_size=5).map(
        lambda told: Records(*map(tuple, zip(*told, strict=True)))
    )
    | st.builds(Digest, hashes.map(lambda root: (root,)))
    | st.builds(Digest, st.lists(hashes, min_size=BUCKETS, max_size=BUCKETS).map(tuple))
    | st.builds(Entries, entries, st.sets(st.integers(0, BUCKETS - 1)).map(sorted).map(tuple))
    | st.builds(Want, st.lists(keys, min_size=1, max_size=20).map(tuple))
    | st.just(Graft())
    | st.just(Prune())
    | st.builds(DontWant, entries)
    | st.builds(BeatTold, st.binary(max_size=300))
    | st.builds(Keep, st.booleans(), st.integers(0, 127))
    | st.builds(ScopeTold, st.none() | scopes)
    | st.builds(Seek, st.text(max_size=60), st.integers(1, SOUGHT_MAX))
)
