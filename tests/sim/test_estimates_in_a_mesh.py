"""Whether the bounds that a node puts round its estimates hold in a mesh that has formed."""

import statistics
from collections.abc import Iterator

import pytest

from protocol.estimate import Source
from sim.formed import Formation, formed
from sim.world import World

SETTLED_S = 90.0
"""Seconds after which idle paths have been probed half a dozen times."""


def held(world: World, source: Source) -> Iterator[bool]:
    """Of each pair that is known from a source, whether its true round trip lies within the bounds."""
    jitter_s = 2 * world.network.config.jitter_s * 0.84  # the median of two exponential ones
    for node in world.processes[::3]:
        for number, one in enumerate(world.processes):
            for other in world.processes[number + 1 :: 3]:
                estimate = node.node.views.between(one.peer_id, other.peer_id, world.now)
                if estimate.source is source:
                    delays = world.network.delays
                    rtt_s = delays.one_way_s(one.index, other.index) + delays.one_way_s(other.index, one.index)
                    yield estimate.low_s <= rtt_s + jitter_s <= estimate.high_s


@pytest.mark.parametrize(("delays", "nodes"), [("continents", 40), ("grid", 40), ("line", 40)])
def test_nine_of_ten_round_trips_lie_within_the_bounds(delays: str, nodes: int) -> None:
    world = formed(Formation(nodes, seed=3, delays=delays, start_within_s=60.0))
    by_places = list(held(world, Source.COORDINATE))
    assert len(by_places) > 1000
    assert 0.85 <= statistics.mean(by_places) <= 0.96
    world.run(world.now + SETTLED_S)
    measured = list(held(world, Source.MEASURED))
    assert len(measured) > 100
    assert statistics.mean(measured) >= 0.85


COVERED_S = 900.0
"""Seconds within which everybody's chart has everybody of a hundred: edges are told every ten minutes, sooner to newcomers."""


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_everybody_places_a_hundred_nodes_within_a_quarter_of_an_hour() -> None:
    world = formed(Formation(100, seed=5, delays="continents", start_within_s=60.0))
    world.run(world.now + COVERED_S)
    placed = [process.node.survey.distances.chart.placed.sum() for process in world.processes]
    assert min(placed) >= 99  # everybody else, and itself where others tell of it
