"""How busy a node is, as values: what its engines measure of themselves, and the beat that tells its neighbours.

A beat is no record: the connection that it comes over proves who says it, and it goes no further (`protocol.gossip.beats`).

Spec: docs/spec/04-gossip.md, section "Neighbours".
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """How one model is doing: `service_s` is the recent mean from slot to last output, 0 when it never ran."""

    model: str
    running: int
    waiting: int
    slots: int
    queue_s: float
    service_s: float
    tokens_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Beat:
    """How a node is doing now, told to the peers it is connected to.

    `bus_free_mbps` is what the bus to the accelerator with the most room has left for a transfer, in Mbit/s, 0 when unknown.
    """

    draining: bool
    loads: tuple[ModelLoad, ...]
    bus_free_mbps: int = 0
