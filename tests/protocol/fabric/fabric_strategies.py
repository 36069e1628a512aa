"""Adverts, leases and messages of fabrics, made by Hypothesis."""

from math import prod

from hypothesis import strategies as st

from protocol.errors import ErrorCode
from protocol.fabric import messages
from protocol.fabric.adverts import Advert, Closeness, GpuPath, Port
from protocol.fabric.values import Kind, Lease, Place, Rights, item_bytes
from protocol.wire.inference import DATA_TYPES

ports = st.builds(Port, st.binary(min_size=16, max_size=16), st.integers(1, 128), st.integers(0, 2**32 - 1))


@st.composite
def adverts(draw) -> Advert:
    found = tuple(draw(st.lists(ports, max_size=8)))
    paths = st.builds(GpuPath, st.integers(0, 31), st.integers(0, max(0, len(found) - 1)), st.sampled_from(Closeness))
    return Advert(
        draw(st.just(b"") | st.binary(min_size=16, max_size=16)),
        found,
        tuple(draw(st.lists(st.binary(min_size=16, max_size=16), max_size=4))),
        tuple(draw(st.lists(paths, max_size=32))) if found else (),
        tuple(draw(st.lists(st.binary(min_size=8, max_size=8), max_size=16))),
    )


leases = st.builds(
    Lease,
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**46),
    st.integers(0, 2**46),
    st.sampled_from([Rights.READ, Rights.WRITE]),
    st.integers(1, 3_700_000).map(lambda ms: ms / 1e3),
    st.binary(max_size=72),
)


@st.composite
def places(draw, within: int | None = None) -> Place:
    dtype = draw(st.sampled_from(sorted(DATA_TYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    length = prod(shape) * item_bytes(dtype)
    if within is not None and length > within:
        shape, length = (0,), 0
    offset = draw(st.integers(0, 2**40 if within is None else within - length))
    return Place(draw(st.text(max_size=20)), dtype, shape, offset, length)


@st.composite
def offers(draw) -> messages.Offer:
    lease = draw(st.none() | leases)
    found = tuple(draw(st.lists(places(None if lease is None else lease.length), max_size=5)))
    tag = draw(st.binary(max_size=32))
    return messages.Offer(draw(transfers), draw(st.sampled_from(Kind)), found, lease, tag, draw(st.booleans()))


transfers = st.integers(0, 2**16 - 1)
about_transfers = st.one_of(
    offers(),
    st.builds(messages.Leased, transfers, leases),
    st.builds(messages.Placed, transfers, st.binary(max_size=32)),
    st.builds(messages.Taken, transfers),
    st.builds(messages.Refused, transfers, st.sampled_from(ErrorCode), st.text(max_size=60)),
    st.builds(messages.Released, transfers),
    st.builds(messages.Revoked, transfers),
    st.builds(messages.Streamed, transfers),
)
hellos = st.builds(
    messages.Hello,
    st.lists(st.integers(0, 255), max_size=8).map(tuple),
    st.binary(min_size=16, max_size=16),
    st.none() | st.tuples(st.integers(0, 7), st.integers(0, 7)),
)
openings = st.one_of(
    st.builds(
        messages.Door,
        st.sampled_from(Kind),
        st.binary(min_size=1, max_size=107),
        st.binary(min_size=32, max_size=32),
        st.binary(min_size=16, max_size=16),
    ),
    st.builds(messages.Shut, st.sampled_from(ErrorCode), st.text(max_size=60)),
)
