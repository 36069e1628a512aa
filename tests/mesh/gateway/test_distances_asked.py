"""The gateway's pages about distances, in front of a real core that knows a few peers; and what must not be asked of them."""

import random

import httpx
import pytest
from gateway_node import Start

from mesh.distances import parse_duration
from mesh.map.collect import FULL_NODES, PAIRS_MAX
from mesh.map.facts import read_facts
from protocol.identity import PeerId, peer_id_text


@pytest.fixture
async def asked(start: Start):
    running = await start()
    knowing = running.dispatcher.knowing
    measured = knowing.card(0.5, models=["m"])
    knowing.measure(measured, 0.010)
    near, far = knowing.card(0.004), knowing.card(0.090, models=["m", "n"])
    silent = knowing.card(None)
    async with httpx.AsyncClient(base_url=running.url, timeout=20) as client:

        async def ask(path: str, status: int = 200) -> dict:
            answer = await client.get(path)
            assert answer.status_code == status, answer.text
            return answer.json()

        yield ask, {"own": knowing.node.peer_id, "measured": measured, "near": near, "far": far, "silent": silent}


def ids(answer: dict) -> list[str]:
    return [row["peer_id"] for row in answer["peers"]]


def texts(*peers: PeerId) -> list[str]:
    return [peer_id_text(peer_id) for peer_id in peers]


async def test_distance_to_a_peer_and_between_two(asked) -> None:
    ask, peers = asked
    own, measured, near, far, silent = texts(*peers.values())
    told = await ask(f"/mesh/distance/{measured}")
    assert (told["from"], told["to"], told["source"], told["samples"]) == (own, measured, "measured", 1)
    assert told["low_s"] < 0.010 < told["high_s"]
    assert told["rtt_s"] == pytest.approx(0.010)
    assert (told["loss"], told["jitter_s"], told["measured_ago_s"]) == (0.0, 0.0, 0.99)
    assert await ask(f"/mesh/distance/{own}/{measured}") == told
    between = await ask(f"/mesh/distance/{near[-8:]}/{far[:-2]}")
    assert (between["from"], between["to"], between["source"], between["loss"]) == (near, far, "coordinate", None)
    assert between["rtt_s"] == pytest.approx(0.086, rel=1e-3)
    unknown = await ask(f"/mesh/distance/{silent}/{far}")
    assert (unknown["rtt_s"], unknown["low_s"], unknown["high_s"], unknown["source"]) == (None, None, None, "unknown")
    itself = await ask(f"/mesh/distance/{own}")
    assert (itself["rtt_s"], itself["source"]) == (0.0, "self")


async def test_near_is_sorted_and_limited(asked) -> None:
    ask, peers = asked
    own, measured, near, far = texts(*list(peers.values())[:4])
    told = await ask("/mesh/near")
    assert ids(told) == [near, measured, far]  # 4 ms by its place, 10 ms measured, 90 ms
    assert (told["of"], told["asked"], told["unknown"], told["left_off"]) == (own, 4, 1, 0)
    assert ids(await ask("/mesh/near?within=20ms")) == [near, measured]
    assert ids(await ask("/mesh/near?within=0.02s&model=m")) == [measured]
    limited = await ask("/mesh/near?limit=1")
    assert (ids(limited), limited["left_off"]) == ([near], 2)
    assert limited["peers"][0]["models"] == []
    round_far = await ask(f"/mesh/near/{far}?within=100ms")
    assert ids(round_far) == [near, own]
    assert [row["standing"] for row in round_far["peers"]] == ["alive", "self"]
    assert ids(await ask(f"/mesh/near/{far}?model=own")) == [own]
    assert ids(await ask("/mesh/near?model=nobody")) == []


async def test_equally_near_peers_come_in_the_order_of_their_ids(start: Start) -> None:
    running = await start()
    same = [running.dispatcher.knowing.card(0.004) for _ in range(20)]
    async with httpx.AsyncClient(base_url=running.url) as client:
        assert ids((await client.get("/mesh/near")).json()) == texts(*sorted(same))


async def test_coordinates_of_everybody_who_tells_one(asked) -> None:
    ask, peers = asked
    rows = (await ask("/mesh/coordinates"))["coordinates"]
    placed = sorted(peer_id for name, peer_id in peers.items() if name != "silent")
    assert [row["peer_id"] for row in rows] == texts(*placed)
    (far,) = (row for row in rows if row["peer_id"] == peer_id_text(peers["far"]))
    assert far["vector_ms"] == [90.0, *[0.0] * 7]
    assert (far["height_ms"], far["error"], far["standing"]) == (0.0, 0.1, "alive")


async def test_a_map_tells_the_nodes_by_distance_and_all_round_trips_between_them(asked) -> None:
    ask, peers = asked
    own, measured, near, far = texts(*list(peers.values())[:4])
    told = await ask("/mesh/map")
    assert [row["peer_id"] for row in told["nodes"]] == [own, near, measured, far]
    assert (told["own"], told["unknown"], told["left_off"]) == (0, 1, 0)
    assert (told["nodes"][2]["loss"], told["nodes"][3]["loss"], told["nodes"][3]["models"]) == (0.0, None, ["m", "n"])
    facts = read_facts(told)
    assert set(facts.apart) == {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}
    between = await ask(f"/mesh/distance/{near}/{far}")
    assert facts.apart[1, 3].ms == pytest.approx(1000 * between["rtt_s"], abs=0.01)
    assert facts.apart[1, 3].high_ms == pytest.approx(1000 * between["high_s"], abs=0.01)
    assert (facts.apart[0, 2].source, facts.apart[1, 2].source) == ("measured", "coordinate")
    round_far = await ask(f"/mesh/map/{far}")
    assert round_far["around"] == round_far["nodes"][0]["peer_id"] == far
    assert round_far["nodes"][round_far["own"]]["peer_id"] == own


async def test_a_map_of_many_tells_the_nearest_of_each_and_no_more(start: Start) -> None:
    running = await start()
    luck = random.Random(5)
    for _ in range(2 * FULL_NODES):
        running.dispatcher.knowing.card(luck.uniform(0.001, 0.2))
    async with httpx.AsyncClient(base_url=running.url, timeout=20) as client:
        facts = read_facts((await client.get("/mesh/map")).json())
    count = 2 * FULL_NODES + 1
    assert len(facts.places) == count
    assert count - 1 + count * 50 < len(facts.apart) <= PAIRS_MAX + count
    for one in (1, 100, 300):
        others = [apart.ms for pair, apart in facts.apart.items() if one in pair and 0 not in pair]
        spot = facts.places[one].vector_ms[0]
        nearest = sorted(abs(place.vector_ms[0] - spot) for number, place in enumerate(facts.places) if number not in (0, one))
        assert max(sorted(others)[:50]) == pytest.approx(nearest[49], abs=0.02)


@pytest.mark.parametrize(
    ("told", "is_shown"),
    [
        ({"latitude": 48.1, "longitude": 11.6}, True),
        ({"latitude": -90, "longitude": 180}, True),
        ({"latitude": 48.1}, False),
        ({"latitude": 90.1, "longitude": 0.0}, False),
        ({"latitude": 0.0, "longitude": -180.5}, False),
        ({"latitude": "48.1", "longitude": "11.6"}, False),
        ({"latitude": [48.1], "longitude": {}}, False),
        ({"latitude": True, "longitude": False}, False),
        ({"latitude": 10**18, "longitude": 0}, False),
    ],
    ids=str,
)
async def test_a_place_on_earth_is_told_where_it_is_one(told: dict[str, object], is_shown: bool, start: Start) -> None:
    running = await start()
    running.dispatcher.knowing.card(0.010, **told)
    async with httpx.AsyncClient(base_url=running.url) as client:
        rows = (await client.get("/mesh/map")).json()["nodes"]
    assert len(rows) == 2
    assert ("latitude" in rows[1]) is ("longitude" in rows[1]) is is_shown


@pytest.mark.parametrize(
    ("path", "status", "code", "said"),
    [
        ("/mesh/distance/zzzzzzzz", 404, "peer_not_found", "isochrone peers"),
        ("/mesh/distance/abc", 404, "peer_not_found", "at least 4 characters"),
        ("/mesh/distance/12D3KooW", 404, "peer_not_found", "names 5 nodes"),
        ("/mesh/distance/" + "1" * 12_000, 404, "peer_not_found", "no node"),
        ("/mesh/distance/%00%1b%5b2J", 404, "peer_not_found", "no node"),
        ("/mesh/distance/%3Cscript%3E", 404, "peer_not_found", "no node"),
        ("/mesh/distance/", 404, "not_found", ""),
        ("/mesh/distance/a/b/c", 404, "not_found", ""),
        ("/mesh/distance/zzzzzzzz?within=1ms", 400, "invalid_value", "no parameter 'within'"),
        ("/mesh/near/zzzzzzzz", 404, "peer_not_found", "isochrone peers"),
        ("/mesh/near?within=10", 400, "invalid_value", "the unit is missing"),
        ("/mesh/near?within=", 400, "invalid_value", "10ms"),
        ("/mesh/near?within=0ms", 400, "invalid_value", "more than 0"),
        ("/mesh/near?within=-1ms", 400, "invalid_value", "is no duration"),
        ("/mesh/near?within=nan", 400, "invalid_value", "is no duration"),
        ("/mesh/near?within=inf", 400, "invalid_value", "is no duration"),
        ("/mesh/near?within=1e9s", 400, "invalid_value", "is no duration"),
        ("/mesh/near?within=11s", 400, "invalid_value", "at most 10s"),
        ("/mesh/near?within=" + "9" * 12_000 + "ms", 400, "invalid_value", "is no duration"),
        ("/mesh/near?within=%D9%A1ms", 400, "invalid_value", "is no duration"),
        ("/mesh/near?within=1ms&within=2ms", 400, "invalid_value", "stands twice"),
        ("/mesh/near?inside=1ms", 400, "invalid_value", "within, model, limit"),
        ("/mesh/near?limit=0", 400, "invalid_value", "from 1 to 10000"),
        ("/mesh/near?limit=-1", 400, "invalid_value", "from 1 to 10000"),
        ("/mesh/near?limit=10001", 400, "invalid_value", "from 1 to 10000"),
        ("/mesh/near?limit=" + "9" * 5000, 400, "invalid_value", "from 1 to 10000"),
        ("/mesh/near?limit=1.5", 400, "invalid_value", "from 1 to 10000"),
        ("/mesh/map?around=me", 400, "invalid_value", "it knows: none"),
        ("/mesh/map/zzzzzzzz", 404, "peer_not_found", "isochrone peers"),
        ("/mesh/coordinates?limit=1", 400, "invalid_value", "it knows: none"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else str(value),
)
async def test_what_cannot_be_meant_is_refused_with_what_to_do(asked, path: str, status: int, code: str, said: str) -> None:
    ask, _ = asked
    error = (await ask(path, status))["error"]
    assert error["code"] == code
    assert said in error["message"]
    assert len(error["message"]) < 400


@pytest.mark.parametrize("path", ["/mesh/distance/zzzzzzzz", "/mesh/near", "/mesh/coordinates", "/mesh/map"])
async def test_pages_are_only_read(path: str, start: Start) -> None:
    running = await start()
    async with httpx.AsyncClient(base_url=running.url) as client:
        assert (await client.post(path, json={})).status_code == 405


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10ms", 0.010),
        ("0.5s", 0.5),
        ("250us", 0.000250),
        ("250µs", 0.000250),
        (" 10 ms ", 0.010),
        ("10s", 10.0),
        ("1.25ms", 0.00125),
    ],
)
def test_durations_have_units(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)
