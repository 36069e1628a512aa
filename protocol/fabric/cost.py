"""How long a transfer takes by a fabric and by a stream, and from which size on the fabric is quicker.

A way is a chain of links. Its time is what it costs to begin, the latency of all links, and the bytes over the narrowest of them:

    setup + registration + sum(latency) + bytes / min(bytes_per_s) + bytes * (registration + copies) per byte

Registration is what the hardware takes to learn of memory that it has not seen; a ring that is used again has none. Copies are
those that the sender has to make where the tensor does not lie in a region yet. Where the tensor goes on over a bus into the
memory of an accelerator after it has arrived, the bus adds its own time for each byte; where a fabric writes into that memory
itself, the bus is one link of the chain.

Source: the alpha-beta model (Hockney, "The communication challenge for MPP", 1994), with the costs of registration apart (Frey
and Alonso, "Minimizing the Hidden Cost of RDMA", ICDCS 2009). Spec: docs/spec/11-fabric.md, section "When a fabric is used".
"""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Link:
    """One piece of a way: how long a byte is under way, in seconds, and how many pass in a second."""

    latency_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Way:
    """A way that bytes can take.

    Attributes:
        links: from one end to the other; at least one.
        setup_s: what each transfer costs whatever its size: messages, wake-ups.
        registration_s: what it costs to register memory, whatever its size; 0 where it is registered.
        per_byte_s: what each byte costs besides the links: registering its page, copying it.
    """

    links: tuple[Link, ...]
    setup_s: float = 0.0
    registration_s: float = 0.0
    per_byte_s: float = 0.0

    def and_then(self, link: Link) -> "Way":
        """The way with one more link that the bytes take once they have all arrived, as over a bus into another memory."""
        return replace(self, setup_s=self.setup_s + link.latency_s, per_byte_s=self.per_byte_s + 1.0 / link.bytes_per_s)

    def transfer_s(self, size_bytes: int) -> float:
        """The predicted time of a transfer in seconds."""
        return self.fixed_s + size_bytes * self.each_s

    @property
    def fixed_s(self) -> float:
        """What every transfer costs, in seconds."""
        return self.setup_s + self.registration_s + sum(link.latency_s for link in self.links)

    @property
    def each_s(self) -> float:
        """What every byte costs, in seconds."""
        return 1.0 / min(link.bytes_per_s for link in self.links) + self.per_byte_s


def crossover_bytes(fabric: Way, stream: Way) -> float:
    """The size from which on the fabric is as quick as the stream; infinity where large tensors are quicker by the stream.

    Both times are straight lines over the size, so there is one place at most where they cross.
    """
    dearer_s, gained_s = fabric.fixed_s - stream.fixed_s, stream.each_s - fabric.each_s
    if gained_s <= 0.0:
        return 0.0 if gained_s == 0.0 and dearer_s <= 0.0 else math.inf
    return max(0.0, dearer_s / gained_s)


HERE = Way((Link(0.0, math.inf),))
"""The way to an engine of the same node: what it needs is there."""

COPY = Link(0.0, 4e9)
"""One pass over memory, in bytes per second: what one core of a plain server copies at the least."""

STREAM = Way((Link(0.0, 150e6),))
"""A QUIC stream, in bytes per second: encrypted by one core of Python. Between two processes of one host, in large datagrams, it
carried 545 MB/s each way where nothing else ran and 205 where much did (`python -m benchmarks crossover`, two cores); between
hosts datagrams are smaller, and less than the least of both is taken for all."""

SHM = Way((COPY,), setup_s=0.0027)
"""Shared memory, copied in once by the sender. The setup in seconds is what offering and taking cost a request more than a stream
does, 1.0 and 1.9 ms by the same two runs, and what the stream is quicker on one host than it is put at: with it a node changes
over at 411 KiB. The ways were as quick at 300 and at 209 KiB, and from 256 KiB on no size was slower by shared memory. The
hand-over itself takes some 60 us, whatever the size."""

APART_SETUP_S = 0.0067
"""The same of fabrics whose whole requests were not measured beside a stream, in seconds: with it nothing below some 900 KiB
takes them."""

CXL = Way((Link(1e-6, 4e9),), setup_s=APART_SETUP_S)
"""A pool that both hosts map: shared memory, of which a read takes some hundred nanoseconds more (CXL 2.0 devices behind a switch
are told to take 200 to 400), which no transfer from a mebibyte on notices. Nothing was measured on such a device."""

WORTH_BYTES_MIN = 64 * 1024
"""Tensors of fewer bytes take no fabric, and none is looked for: a stream carries as many in half a millisecond, and each of the
ways here costs several times that before the first byte."""

GPU = Way((Link(0.0, 60e9),), setup_s=APART_SETUP_S)
"""GPU memory of one device, copied once by each side, in bytes per second: each copy reads and writes the memory, of which a
small data-centre card (NVIDIA T4: 320 GB/s) moves a fifth of that much at the least. Nothing was measured on a GPU."""
