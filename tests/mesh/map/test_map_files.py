"""The file of a map: well-formed, of itself alone, readable, and text where peers have written."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from xml.etree import ElementTree as ET

import pytest
from known_maps import planar, scattered

from mesh.map.draw import draw
from mesh.map.facts import MapFacts, read_facts
from mesh.map.labels import HEIGHT, Box, width_of
from mesh.map.page import KEYS, page
from mesh.map.style import DARK, DRAWING, LIGHT, PALETTE
from mesh.map.world import crossings, draw_world, field, window
from mesh.nodefile import ClientError

SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "link", "br", "img", "input"}
HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'/><svg onload=alert(1)>",
    "&lt;b&gt;<!--",
    "]]></style><style>*{display:none}",
    "\x1b[2J\u202eevil\x00\ud800",
)


class Elements(HTMLParser):
    """Every element of a page, and whether each is closed where it has to be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            _, attrs = self.found[-1]
            name = attrs.get("id") or "script"
            self.text[name] = self.text.get(name, "") + data


def elements(text: str) -> Elements:
    parser = Elements()
    parser.feed(text)
    parser.close()
    assert not parser.open
    return parser


def whole(facts: MapFacts) -> str:
    return page(facts, draw(facts))


@pytest.mark.parametrize("count", [1, 2, 5, 40, 200])
def test_both_kinds_of_file_are_well_formed(count: int) -> None:
    facts = scattered(count, models=("a & b", "m"), jitter_s=0.001, loss=0.02)
    ET.fromstring(draw(facts, alone=PALETTE + DRAWING).svg)
    found = elements(whole(facts)).found
    assert sum("data-node" in attrs for _, attrs in found) == count


def test_a_page_loads_nothing_and_runs_one_script() -> None:
    text = whole(scattered(20))
    parser = elements(text)
    for tag, attrs in parser.found:
        assert not {"src", "href", "action", "onload", "onerror", "onclick"} & set(attrs), tag
    assert [tag for tag, _ in parser.found if tag in ("link", "img", "iframe", "object", "embed", "base")] == []
    assert re.findall(r"https?://[^\"'\s)]*", text.replace("http://www.w3.org/2000/svg", "")) == []
    assert not re.search(r"\bfetch\(|XMLHttpRequest|import\(|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
    policy = next(attrs["content"] for tag, attrs in parser.found if tag == "meta" and "http-equiv" in attrs)
    digest = base64.b64encode(hashlib.sha256(parser.text["script"].encode()).digest()).decode()
    assert policy is not None
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize("evil", HOSTILE)
def test_what_peers_write_stays_text(evil: str) -> None:
    plain = scattered(8)
    facts = replace(plain, places=tuple(replace(place, owner=evil, models=(evil,), standing=evil) for place in plain.places))
    friendly = replace(plain, places=tuple(replace(place, owner="o", models=("m",), standing="s") for place in plain.places))
    shape = [(tag, sorted(attrs)) for tag, attrs in elements(whole(friendly)).found if tag not in ("text", "tspan")]
    parser = elements(whole(facts))
    assert [(tag, sorted(attrs)) for tag, attrs in parser.found if tag not in ("text", "tspan")] == shape
    data = json.loads(parser.text["facts"])
    assert data["nodes"][1]["models"] == ["".join(character for character in evil if character.isprintable())]
    assert "<" not in parser.text["facts"]
    ET.fromstring(draw(facts).svg)
    whole(facts).encode("utf-8")  # no half of a surrogate pair is left


def test_the_script_finds_what_the_drawing_shows() -> None:
    facts = scattered(30)
    drawing = draw(facts)
    data = json.loads(elements(page(facts, drawing)).text["facts"])
    assert [(node["x"], node["y"]) for node in data["nodes"]] == [(round(x, 2), round(y, 2)) for x, y in drawing.spots]
    assert sum(len(flat) for flat in data["pairs"]) == 5 * 30 * 29 // 2
    other, ms, low, high, source = data["pairs"][3][:5]
    assert (other, data["sources"][source]) == (4, "coordinate")
    assert ms * data["unit"] == pytest.approx(facts.apart[3, 4].ms, abs=0.01)
    assert low < ms < high


def test_every_node_can_be_reached_by_the_keyboard_and_says_what_it_is() -> None:
    facts = scattered(12, models=("my-llm",), jitter_s=0.0005, loss=0.031)
    nodes = [attrs for _, attrs in elements(whole(facts)).found if "data-node" in attrs]
    assert [attrs["data-node"] for attrs in nodes] == [str(number) for number in range(12)]
    assert {attrs["tabindex"] for attrs in nodes} == {"0"}
    said = nodes[1]["aria-label"]
    assert said is not None
    assert all(part in said for part in ("ms, between", "(measured)", "jitter 0.50 ms", "loss 3.1%", "my-llm"))
    assert {key for key, _ in KEYS} >= {"Tab", "Enter", "?"}


def test_names_overlap_neither_each_other_nor_marks() -> None:
    root = ET.fromstring(draw(scattered(40)).svg)
    boxes = []
    for text in root.findall(f".//{SVG}text[@class='name']"):
        words = "".join(text.itertext())
        width, x = width_of(words), float(text.attrib["x"])
        left = {"start": x, "middle": x - width / 2, "end": x - width}[text.attrib["text-anchor"]]
        boxes.append(Box(left, float(text.attrib["y"]) - 11.5, width, HEIGHT))
    assert len(boxes) > 12
    marks = [
        (float(circle.attrib["cx"]), float(circle.attrib["cy"])) for circle in root.findall(f".//{SVG}circle[@class='mark']")
    ]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].meets(pair[1])]
    assert not [(box, x, y) for box in boxes for x, y in marks if box.meets(Box(x - 6, y - 6, 12, 12)) and y < 950]


def luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_their_ground(colours: dict[str, str]) -> None:
    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(colours[one]), luminance(colours[other])))
        return (high + 0.05) / (low + 0.05)

    assert all(contrast(text, ground) >= 4.5 for text in ("text", "muted") for ground in ("ground", "panel", "land"))
    assert all(contrast(line, "ground") >= 3.0 for line in ("ring", "node", "middle", "good", "fair", "poor"))


def test_an_answer_that_is_no_map_is_refused() -> None:
    good = {
        "nodes": [{"peer_id": "a"}, {"peer_id": "b"}], "own": 0, "unit_s": 1e-5, "sources": ["measured"],
        "left_off": 0, "unknown": 0, "pairs": [[1, 1000, 900, 1100, 0], []],
    }  # fmt: skip
    assert read_facts(good).apart[0, 1].ms == pytest.approx(10.0)
    for key, value in (
        ("nodes", []), ("nodes", [{}]), ("pairs", [[5, 1, 1, 1, 0], []]), ("pairs", [[], []]), ("pairs", [[1, -1, 0, 1, 0], []]),
        ("pairs", [[1, 1, 1, 1, 9], []]), ("pairs", [[1, 1, 1], []]), ("pairs", [[1, float("nan"), 1, 1, 0], []]),
        ("unit_s", "x"),
    ):  # fmt: skip
        with pytest.raises(ClientError, match="no map"):
            read_facts({**good, key: value})
    with pytest.raises(ClientError, match="no map"):
        read_facts([])


def on_earth() -> MapFacts:
    """London, Paris, New York, Tokyo; the last node does not say where it is."""
    where = [(51.5, -0.1), (48.9, 2.4), (40.7, -74.0), (35.7, 139.7), (None, None)]
    facts = planar([(0.0, 0.0), (8.0, 0.0), (70.0, 0.0), (0.0, 200.0), (300.0, 0.0)], measured=2)
    places = (replace(place, latitude=y, longitude=x) for place, (y, x) in zip(facts.places, where, strict=True))
    return replace(facts, places=tuple(places))


def test_the_world_shows_who_says_where_it_stands() -> None:
    facts = on_earth()
    drawing = draw_world(facts, alone=PALETTE + DRAWING)
    root = ET.fromstring(drawing.svg)
    assert len(root.findall(f".//{SVG}g[@data-node]")) == 4
    (london, paris, york, tokyo) = drawing.spots
    assert york[0] < london[0] < paris[0] < tokyo[0]
    assert london[1] < paris[1] < york[1] < tokyo[1]
    lines = {float(line.attrib["data-ms"]) for line in root.findall(f".//{SVG}path[@class='line']")}
    assert lines
    assert all(8.0 <= ms <= 200.0 for ms in lines)
    elements(page(facts.located(), drawing))
    assert draw_world(facts).svg == draw_world(facts).svg
    with pytest.raises(ClientError, match="latitude"):
        draw_world(scattered(4))


def test_lines_of_equal_time_lie_where_the_time_is_equal() -> None:
    import numpy as np

    where = np.array([(0.0, 50.0), (10.0, 50.0)])
    grid = window(where)
    values = field(np.array([10.0, 30.0]), where, grid)
    assert np.nanmin(values) == pytest.approx(10.0, abs=1.0)
    pieces = crossings(values, 20.0, grid)
    assert pieces
    along = [
        grid["west"] + x / grid["pixels"]
        for piece in pieces
        for x, y in piece
        if abs(grid["north"] - (y - grid["top"]) / grid["pixels"] - 50) < 1
    ]
    assert along
    assert all(longitude == pytest.approx(5.0, abs=0.3) for longitude in along)  # half way, where both count the same
    assert crossings(values, 5.0, grid) == []
