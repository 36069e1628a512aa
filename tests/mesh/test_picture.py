"""The map: distances come out as they went in, and names from peers cannot break the page."""

import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from mesh.testnet.picture import Place, draw_map, page, scale_to_plane

SVG = "{http://www.w3.org/2000/svg}"


def test_points_in_a_plane_are_recovered_up_to_rotation() -> None:
    points = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0], [-5.0, 1.0]])
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    placed = scale_to_plane(distances)
    assert np.linalg.norm(placed[:, None] - placed[None], axis=2) == pytest.approx(distances, abs=1e-9)


def test_farther_nodes_are_drawn_farther_out() -> None:
    matrix = np.array([[0, 2.0, 50.0], [2.0, 0, 51.0], [50.0, 51.0, 0]])
    places = [Place("home", 0, 0, True), Place("near", 2.0, 3, True), Place("far", 50.0, 0, False)]
    root = ET.fromstring(draw_map(places, matrix, "map"))
    dots = [c for c in root.iter(f"{SVG}circle") if c.get("class") is None]
    middle = (float(dots[0].get("cx", "0")), float(dots[0].get("cy", "0")))
    radii = [np.hypot(float(d.get("cx", "0")) - middle[0], float(d.get("cy", "0")) - middle[1]) for d in dots]
    assert radii[0] == 0
    assert 0 < radii[1] < radii[2]
    assert len(list(root.iter(f"{SVG}path"))) == 1, "the dead node is crossed out"
    assert len(list(root.iter(f"{SVG}line"))) == 1, "one line to the node that answered"


def test_unmeasured_distances_do_not_break_the_map() -> None:
    matrix = np.array([[0, np.nan], [np.nan, 0]])
    assert "<svg" in draw_map([Place("a", 0, 0, True), Place("b", 0, 0, True)], matrix, "map")


def test_names_cannot_inject_markup() -> None:
    evil = "<script>alert(1)</script>"
    matrix = np.array([[0, 1.0], [1.0, 0]])
    html = page(draw_map([Place(evil, 0, 0, True), Place(evil, 1, 1, True, evil)], matrix, evil), evil, [evil], [[evil]], evil)
    assert not re.search(r"<script", html)
