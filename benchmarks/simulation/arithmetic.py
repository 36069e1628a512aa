"""What a node receives per second at any size, from the configuration, with what was measured put in where it must be.

Every term is a rate times a size. The rates are the configuration's; how often a record arrives at a node before and after the
first time, and how long it is, are taken from the steady run at its largest size. A kind of traffic that is not named here, for
it hangs on luck and on what is missing (wants, answers), is taken over as it was measured there.

A term belongs here for each thing that the core does at an interval; who changes such an interval changes this module with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.simulation.figures import Figure
from protocol.node import NodeConfig
from protocol.places import PLACE_BYTES
from protocol.probe import PROBE_BYTES
from sim.network import PACKET_OVERHEAD_BYTES

GOALS_KB = {100: 2.0, 10_000: 6.0, 1_000_000: 20.0}
"""kB/s received per node, the goals."""

PUBLISHED_KB = {100: 2.6, 10_000: 9.0, 1_000_000: 30.0}
"""kB/s received per node of a plain near-ring design: arithmetic over its beats, cards and edges."""

WIRE_WORK = "received per node, with packet headers: "
COUNT_WORK = "messages received per node: "


@dataclass(frozen=True, slots=True)
class Costs:
    """What the terms are made of.

    Attributes:
        config: of every core.
        nodes: the size that was measured.
        kb: kB/s of each kind of message at that size, with packet headers.
        per_s: messages of each kind per second at that size.
    """

    config: NodeConfig
    nodes: int
    kb: dict[str, float]
    per_s: dict[str, float]

    @classmethod
    def measured(cls, figures: Sequence[Figure], config: NodeConfig) -> "Costs":
        """From the figures of the largest mesh among them."""
        nodes = max(figure.nodes for figure in figures if figure.work.startswith(WIRE_WORK))
        here = [figure for figure in figures if figure.nodes == nodes and figure.ours is not None]
        kb = {figure.work.removeprefix(WIRE_WORK): figure.ours or 0.0 for figure in here if figure.work.startswith(WIRE_WORK)}
        per_s = {
            figure.work.removeprefix(COUNT_WORK): figure.ours or 0.0 for figure in here if figure.work.startswith(COUNT_WORK)
        }
        return cls(config, nodes, kb, per_s)


def rates_at(nodes: int, config: NodeConfig) -> dict[str, float]:
    """Per second, how many things of each kind a node is told of that has so many peers; copies not counted."""
    linked = min(nodes - 1, config.membership.near_max + 2 * config.membership.far_max)
    watched = min(linked, config.gossip.degree)
    horizon = config.gossip.horizon
    held = min(nodes - 1, horizon.peers + horizon.sample_max)
    cards_per_s = held / (config.announcer.card_lifetime_s / 2.0)
    return {
        # theirs, and the echoes of ours; third legs, of which either end receives half
        "probe": watched * (2.0 + 0.5 / config.probe.third_leg_every) / config.probe.interval_s
        + (linked - watched) * 1.5 / config.probe.idle_interval_s,
        "records: card": cards_per_s,
        "entries": cards_per_s,  # a card that is renewed is announced over every link of the mesh
        "want": cards_per_s,
        "beattold": min(linked, config.membership.near_max),
    }


def costs_at(nodes: int, costs: Costs) -> float:
    """kB/s that a node receives in a mesh of so many nodes."""
    here, there = rates_at(costs.nodes, costs.config), rates_at(nodes, costs.config)
    total = 0.0
    for kind, kb in costs.kb.items():
        if kind == "probe":
            total += there["probe"] * (PROBE_BYTES + PLACE_BYTES / 2.0 + PACKET_OVERHEAD_BYTES) / 1000.0
        else:
            total += kb * (there[kind] / here[kind] if kind in here else 1.0)
    return total
