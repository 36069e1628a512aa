"""`isochrone simulate`: plans are read and refused, a plan is run, failures do what they say, and the result is shown."""

import json
import math
import signal
import subprocess
import sys
import tomllib
import xml.dom.minidom
from collections.abc import Iterator
from pathlib import Path

import pytest

from sim.churn import Churn, ChurnSettings
from sim.simulate import FORM_S, Simulation
from sim.simulate_report import page, places
from sim.sites import SiteDelays, SitesError, plan_of, read_plan
from sim.sites_example import EXAMPLE
from sim.terminal import run_simulation

ROOT = Path(__file__).parents[2]

SMALL = """
rtt_ms = [[0, 20, 90], [20, 0, 80], [90, 80, 0]]

[[sites]]
name = "office"
access_ms = 2

[[sites]]
name = "lab"
[[sites.models]]
name = "m"
slots = 4
first_token_ms = 100
tokens_per_s = 100

[[sites]]
name = "cloud"
[[sites.models]]
name = "m"
slots = 4
first_token_ms = 100
tokens_per_s = 100

[[load]]
site = "office"
model = "m"
requests_per_s = 2
tokens = 20
max_tokens = 60
deadline_s = 8
"""


def changed(**tables):
    return plan_of(tomllib.loads(SMALL) | tables)


def simulated(for_s=20.0, seed=1, **tables):
    simulation = Simulation(changed(**tables), seed, for_s)
    return simulation, simulation.run()


def test_the_example_is_a_plan() -> None:
    plan = plan_of(tomllib.loads(EXAMPLE))
    assert [site.name for site in plan.sites] == ["office", "lab", "cloud"]
    assert plan.node_names == ("office-1", "office-2", "lab-1", "lab-2", "lab-3", "cloud-1", "cloud-2")
    assert [failure.name for failure in plan.failures] == ["lab", "cloud-1"]


def test_distances_count_the_lines_of_both_sites_and_links_overrule() -> None:
    plan = changed(links=[{"between": ["office", "cloud"], "rtt_ms": 60}])
    delays = SiteDelays(plan.site_of, plan.rtt_s)
    assert delays.one_way_s(0, 1) == pytest.approx(0.011)
    assert delays.one_way_s(0, 2) == pytest.approx(0.031)
    assert delays.one_way_s(1, 2) == pytest.approx(0.040)


def test_sites_are_placed_by_region() -> None:
    text = SMALL.replace("rtt_ms = [[0, 20, 90], [20, 0, 80], [90, 80, 0]]", "")
    mapping = tomllib.loads(text)
    for site, region in zip(mapping["sites"], ("europe", "europe", "oceania"), strict=True):
        site["region"] = region
    plan = plan_of(mapping)
    assert plan.rtt_s[0][2] == pytest.approx(0.262)
    del mapping["sites"][2]["region"]
    with pytest.raises(SitesError, match="office and cloud: say how far apart"):
        plan_of(mapping)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "requests_per_s",
            "request_per_s",
            r'load\[0\].request_per_s = 2: there is no such key \(did you mean "requests_per_s"\?',
        ),
        ('site = "office"', 'site = "ofice"', r'load\[0\].site = \'ofice\': .*did you mean "office"'),
        ("slots = 4", "slots = 0", r"sites\[1\].models\[0\].slots = 0: give a whole number from 1"),
        ('name = "lab"', 'name = "office"', r"sites\[1\].name = 'office': two sites"),
        ("[20, 0, 80]", "[21, 0, 80]", r"rtt_ms\[0\]\[1\] = 20: a round trip is the same from both ends"),
        ("[20, 0, 80]", "[20, 0]", "rtt_ms: give 3 rows of 3 numbers"),
        ("tokens = 20\n", "", r"load\[0\].tokens: give a number"),
        ("access_ms = 2", "access_ms = nan", r"sites\[0\].access_ms = nan: give a number"),
        ('model = "m"', 'model = "n"', r"load\[0\].model = 'n': there is none"),
        ("tokens = 20\n", "tokens = true\n", r"load\[0\].tokens = True"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = tmp_path / "sites.toml"
    assert old in SMALL
    path.write_text(SMALL.replace(old, new, 1))
    with pytest.raises(SitesError, match=told):
        read_plan(path)


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        ({"what": "cut", "site": "lab", "from_s": 5, "to_s": 5}, "to_s = 5.0: give a time after from_s"),
        ({"what": "cut", "site": "lab", "node": "lab-1", "from_s": 5}, "name a site or a node"),
        ({"what": "cut", "node": "lab-2", "from_s": 5}, 'did you mean "lab-1"'),
        ({"what": "rain", "site": "lab", "from_s": 5}, "known are cut, down, drain"),
    ],
)
def test_a_failure_that_makes_no_sense_is_refused(failure, told) -> None:
    with pytest.raises(SitesError, match=told):
        changed(failures=[failure])


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SitesError, match="cannot be read"):
        read_plan(tmp_path / "missing.toml")
    (tmp_path / "bad.toml").write_text("sites = [")
    with pytest.raises(SitesError, match="not valid TOML"):
        read_plan(tmp_path / "bad.toml")


def test_callers_are_answered_nearby_in_the_time_the_path_and_the_engine_take() -> None:
    _, outcome = simulated()
    (office,) = outcome.sites
    assert office.requests == office.answered > 20
    assert office.answered_at["lab"] > 0.8 * office.answered
    assert 0.10 < office.first_p50_s < 0.16  # 22 ms of path and about 100 ms in the engine
    assert office.found_at_first == 1.0
    assert office.failures == {}
    lab, cloud = outcome.engines
    assert lab.answered + cloud.answered == office.answered
    assert 0.01 < lab.busy < 0.5
    assert outcome.failure == ""


def test_a_site_that_is_cut_off_is_answered_for_by_another() -> None:
    simulation, outcome = simulated(failures=[{"what": "cut", "site": "lab", "from_s": 6, "to_s": 20}])
    late = [ask for ask in simulation.requests.asks if FORM_S + 12 < ask.asked_at < FORM_S + 19]
    cloud = simulation.world.processes[2].peer_id
    assert late
    assert all(ask.answered_by == cloud for ask in late)
    assert outcome.sites[0].retried > 0


def test_a_node_that_is_down_comes_back_and_one_that_drains_fails_nobody() -> None:
    simulation, outcome = simulated(failures=[{"what": "drain", "node": "lab-1", "from_s": 5, "to_s": 12}])
    lab = simulation.world.processes[1]
    during = [ask for ask in simulation.requests.asks if FORM_S + 6 < ask.asked_at < FORM_S + 11]
    assert during
    assert all(ask.answered and ask.answered_by != lab.peer_id for ask in during)
    assert outcome.sites[0].failures == {}
    assert lab.life == 2
    simulation, outcome = simulated(for_s=10.0, failures=[{"what": "down", "site": "office", "from_s": 5}])
    assert outcome.sites[0].failures["no node of the site runs"] > 0


def test_jitter_and_loss_of_a_line_are_felt_on_its_paths_alone() -> None:
    mapping = tomllib.loads(SMALL)
    mapping["sites"][2] |= {"jitter_ms": 20, "loss": 0.3}
    simulation = Simulation(plan_of(mapping), 1, 5.0)
    simulation.world.run(8.0)
    network = simulation.world.network
    arrivals = [network.datagram(0, 2, 9, 100.0 + number) for number in range(400)]
    late = [arrival[0] for arrival in arrivals if arrival]
    assert 0.6 < len(late) / len(arrivals) < 0.8
    assert 0.01 < sum(late) / len(late) - simulation.world.network.delays.one_way_s(0, 2) < 0.03
    near = [network.datagram(0, 1, 9, 600.0 + number)[0] for number in range(200)]
    assert sum(near) / len(near) - simulation.world.network.delays.one_way_s(0, 1) < 0.001


def test_one_seed_has_one_result() -> None:
    outcomes = [simulated(for_s=6.0, seed=seed)[1] for seed in (5, 5, 6)]
    assert outcomes[0] == outcomes[1]
    assert outcomes[0].digest != outcomes[2].digest


def test_the_page_stands_alone_and_tells_of_failures() -> None:
    simulation, outcome = simulated(for_s=6.0, failures=[{"what": "cut", "site": "lab", "from_s": 2, "to_s": 4}])
    html = page(simulation.plan, outcome)
    svg = xml.dom.minidom.parseString(html[html.index("<svg") : html.index("</svg>") + 6])
    titles = [node.firstChild.data for node in svg.getElementsByTagName("title")]
    assert "lab cut from 2 s" in titles
    assert any(title.endswith("answered at lab") for title in titles)
    assert "http" not in html.replace("http://www.w3.org/2000/svg", "")


def test_places_keep_the_distances_of_a_plane() -> None:
    points = [(0.0, 0.0), (3.0, 0.0), (0.0, 4.0), (3.0, 4.0)]
    placed = places([[math.dist(a, b) for b in points] for a in points])
    assert math.dist(placed[0], placed[3]) / math.dist(placed[0], placed[1]) == pytest.approx(5 / 3)
    assert places([[0.0]]) == [(0.0, 0.0)]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as a terminal delivers it; who was started in the background of a shell ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_early_and_shows_what_was_seen() -> None:
    simulation = Simulation(changed(), 1, 60.0)

    def press(share):
        if simulation.world.now > FORM_S + 5.0:
            signal.raise_signal(signal.SIGINT)

    outcome = simulation.run(press)
    assert outcome.ended == "interrupt"
    assert 4.9 < outcome.load_s < 6.0
    assert outcome.sites[0].answered > 0
    assert "Ended early by Ctrl-C" in page(simulation.plan, outcome)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_before_the_load_has_begun_shows_that_nothing_was_seen() -> None:
    simulation = Simulation(changed(), 1, 60.0)
    outcome = simulation.run(lambda _share: signal.raise_signal(signal.SIGINT))
    assert (outcome.load_s, outcome.sites[0].requests, outcome.sites[0].first_p50_s) == (0.0, 0, None)
    assert "callers at" in page(simulation.plan, outcome)


def test_one_site_that_serves_itself_is_a_plan() -> None:
    site = {"name": "home", "models": [{"name": "m", "first_token_ms": 50, "tokens_per_s": 40}]}
    load = {"site": "home", "model": "m", "requests_per_s": 1, "tokens": 10}
    simulation = Simulation(plan_of({"sites": [site], "load": [load]}), 1, 10.0)
    outcome = simulation.run()
    assert outcome.sites[0].answered_at == {"home": outcome.sites[0].requests}
    assert 0.03 < outcome.sites[0].first_p50_s < 0.08
    assert "none serves" not in page(simulation.plan, outcome)


def test_the_command_shows_a_table_and_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SMALL)
    assert run_simulation(path, for_s=4.0, seed=3, output=tmp_path / "out", quiet=False) == 0
    assert "office" in capsys.readouterr().out
    assert (tmp_path / "out" / "mine-seed-3.html").read_text().startswith("<!doctype html>")
    assert run_simulation(path, for_s=4.0, seed=3, output=tmp_path / "out", quiet=True) == 0
    assert json.loads(capsys.readouterr().out)["sites"][0]["site"] == "office"
    assert run_simulation(None, for_s=4.0, seed=3, output=tmp_path, quiet=True) == 2
    assert "--example" in capsys.readouterr().err
    assert run_simulation(path, for_s=-1.0, seed=3, output=tmp_path, quiet=True) == 2
    assert run_simulation(path, for_s=1.0, seed=3, output=path, quiet=True) == 2


def test_the_program_has_the_command(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "node.py"), "simulate"]
    example = subprocess.run([*command, "--example"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert example.stdout == EXAMPLE
    path = tmp_path / "bad.toml"
    path.write_text(SMALL.replace("slots", "slot", 1))
    refused = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False, cwd=ROOT)
    assert refused.returncode == 2
    assert 'did you mean "slots"' in refused.stderr


# Churn


def churned(half_life_s, load_s=10.0):
    settings = ChurnSettings(
        nodes=6,
        half_life_s=half_life_s,
        load_s=load_s,
        requests_per_s=12.0,
        models=2,
        form_s=4.0,
        joined_s=2.0,
        deadline_s=5.0,
        delays="line",
    )
    churn = Churn(settings)
    return churn, churn.run()


def test_churn_replaces_nodes_and_requests_find_peers() -> None:
    churn, result = churned(4.0)
    assert result.died > 0
    assert result.left > 0
    assert len(churn.world.processes) == 6 + result.died + result.left
    assert sum(process.works for process in churn.world.processes) == 6
    assert result.requests > 80
    assert 0.6 < result.share <= result.able_at_first / result.requests
    assert result == churned(4.0)[1]


def test_a_dead_peer_that_is_asked_first_counts_against_the_share() -> None:
    _, calm = churned(10_000.0)
    assert (calm.died + calm.left, calm.share) == (0, 1.0)
    churn, result = churned(2.0)
    assert result.first_failures["not able"] == result.requests - result.able_at_first > 0
    dead = [ask for ask in churn.requests.asks if ask.first_peer is not None and not ask.first_peer_able]
    assert all(not churn.world.by_id[ask.first_peer].works for ask in dead)
