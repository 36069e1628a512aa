"""Where nodes stand on a map: at their distance from the middle, and as near to each other as can be."""

import itertools
import math
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from known_maps import planar, scattered

from mesh.map.draw import HEIGHT, TOP, WIDTH, draw
from mesh.map.facts import MapFacts
from mesh.map.layout import points
from mesh.map.scale import REACH, RINGS_MAX, Scale, scale_for

SQUARE = [(0.0, 0.0), (10.0, 2.0), (-7.0, 9.0), (-4.0, -12.0), (20.0, -15.0), (3.0, 30.0), (-31.0, 1.0)]
SVG = "{http://www.w3.org/2000/svg}"


def errors_ms(facts: MapFacts) -> list[float]:
    """By how much each pair stands nearer or farther on the map than it is."""
    found = points(facts)
    return [abs(float(np.linalg.norm(found[one] - found[other])) - apart.ms) for (one, other), apart in facts.apart.items()]


@pytest.mark.parametrize("vectors", [True, False], ids=["with coordinates", "without"])
def test_what_lies_in_a_plane_keeps_all_its_distances(vectors: bool) -> None:
    assert max(errors_ms(planar(SQUARE, vectors=vectors))) < 0.05


def test_sites_stay_together_and_apart() -> None:
    facts = scattered(40)
    assert max(errors_ms(facts)) < 0.5


def test_without_any_coordinate_or_pair_nodes_still_stand_apart_at_their_distance() -> None:
    whole = planar(SQUARE, vectors=False)
    facts = MapFacts(whole.places, 0, {pair: apart for pair, apart in whole.apart.items() if pair[0] == 0})
    found = points(facts)
    assert [math.hypot(*point) for point in found] == pytest.approx(facts.ms_from_middle())
    turned = sorted(math.atan2(y, x) for x, y in found[1:])
    assert min(after - before for before, after in itertools.pairwise(turned)) > 0.1


@pytest.mark.parametrize("logarithmic", [True, False, None])
def test_marks_stand_as_far_from_the_middle_as_the_estimate(logarithmic: bool | None) -> None:
    facts = scattered(60)
    drawing = draw(facts, logarithmic=logarithmic)
    marks = ET.fromstring(drawing.svg).findall(f".//{SVG}g[@data-node]")
    assert [int(mark.attrib["data-node"]) for mark in marks] == list(range(60))  # the order of the keyboard is that of distance
    scale = scale_for(facts.ms_from_middle()[1:], logarithmic=logarithmic)
    for mark, ms in zip(marks, facts.ms_from_middle(), strict=True):
        circle = mark.find(f"{SVG}circle[@class='mark']")
        away = math.hypot(float(circle.attrib["cx"]) - WIDTH / 2, float(circle.attrib["cy"]) - TOP - HEIGHT / 2)
        assert away == pytest.approx(scale.pixels(ms), abs=0.02)
        assert float(mark.attrib["data-ms"]) == pytest.approx(ms, rel=1e-5)
        if logarithmic is False:
            assert away == pytest.approx(REACH * ms / scale.high_ms, abs=0.02)


@pytest.mark.parametrize("ms", [[0.11, 0.2, 0.35], [3.0, 80.0, 240.0], [12.0], [1.0, 9000.0], []])
@pytest.mark.parametrize("logarithmic", [True, False, None])
def test_rings_are_few_round_and_within_the_map(ms: list[float], logarithmic: bool | None) -> None:
    scale = scale_for(ms, logarithmic=logarithmic)
    rings = scale.rings()
    assert len(rings) <= RINGS_MAX
    assert rings == sorted(rings)
    assert all(0.0 < scale.pixels(ring) <= REACH + 1e-9 for ring in rings)
    assert all(f"{ring:g}".strip("0.")[:1] in "123456789" and len(f"{ring:g}".replace(".", "").strip("0")) <= 2 for ring in rings)
    assert rings or len(ms) <= 1


def test_a_logarithmic_scale_keeps_the_order() -> None:
    scale = Scale(0.5, 200.0)
    pixels = [scale.pixels(ms) for ms in (0.0, 0.6, 1.0, 10.0, 100.0, 200.0)]
    assert pixels == sorted(pixels)
    assert pixels[-1] == pytest.approx(REACH)


def test_the_same_facts_give_the_same_map() -> None:
    assert draw(scattered(50)).svg == draw(scattered(50)).svg


def test_a_map_of_one_node_is_a_map() -> None:
    alone = planar([(0.0, 0.0)])
    assert ET.fromstring(draw(alone).svg).findall(f".//{SVG}g[@data-node]")
