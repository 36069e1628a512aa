"""The benchmarks at scale, at tiny size: each scenario runs, watchers count what passes, the yardstick is what it says."""

import itertools
import json
from pathlib import Path

import pytest

from benchmarks.simulation.__main__ import SCENARIOS, main
from benchmarks.simulation.arithmetic import Costs, costs_at
from benchmarks.simulation.figures import BEGIN, END, NEVER, Figure, merged, read, update_document, write
from benchmarks.simulation.load import Load
from benchmarks.simulation.memory import reachable_bytes
from benchmarks.simulation.observe import Markers, Traffic
from benchmarks.simulation.scenario import Options, quantile
from benchmarks.simulation.split import Agreement
from benchmarks.simulation.stall_plan import BLAME_S, LONGEST_S, REST_S, SHORTEST_S, StallPlan
from benchmarks.simulation.steady import trend
from benchmarks.simulation.swim import State, SwimConfig, SwimMesh
from sim.formed import Formation, formed
from sim.luck import Streams
from sim.network import Line
from sim.world import World


def small(size: int = 5) -> World:
    return formed(Formation(size, 1, start_within_s=1.0))


def figure(**changes: object) -> Figure:
    fields: dict[str, object] = {"scenario": "s", "work": "w", "ours": 2.0, "unit": "s", "nodes": 30, "meaning": "m."}
    return Figure(**{**fields, **changes})  # type: ignore[arg-type]


def test_every_scenario_runs_quickly_and_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, document = tmp_path / "simulation.json", tmp_path / "measurements.md"
    document.write_text("# Measurements\n\nBefore.\n")
    assert main(["--quick", "--output", str(output), "--document", str(document)]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert {row["scenario"] for row in rows} == set(SCENARIOS)
    assert {"work", "ours", "unit", "against", "theirs", "ratio", "goal"} <= set(rows[0])
    judged = {row["verdict"] for row in rows if row["goal"] is not None}
    assert judged <= {"not at that size", "not measured"}
    assert all(row["ours"] is not None for row in rows if not row["note"].startswith("not measured"))
    text = document.read_text()
    assert text.startswith("# Measurements\n\nBefore.\n")
    assert text.count(BEGIN) == text.count(END) == 1
    assert "new card to all, no loss" in capsys.readouterr().out


def test_a_scenario_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SystemExit):
        main(["nonsense"])


def test_a_goal_is_judged_at_its_size_alone() -> None:
    assert figure(goal=2.0).verdict == "met"
    assert figure(goal=1.9).verdict == "missed"
    assert figure(goal=1.9, ours=None).verdict == "missed"
    assert figure(goal=1.9, goal_nodes=31).verdict == "not at that size"
    assert figure(goal=1.9, goal_nodes=30).verdict == "missed"
    assert figure(goal=1.9, at_least=True).verdict == "met"
    assert figure(goal=9.0, goal_nodes=NEVER).verdict == "not at that size"
    assert figure().verdict == ""


def test_what_is_measured_again_replaces_its_rows(tmp_path: Path) -> None:
    old = [figure(ours=1.0), figure(ours=1.0, nodes=100), figure(ours=1.0, scenario="other")]
    path = tmp_path / "figures.json"
    write(path, merged(old, [figure(ours=5.0)]), 1)
    assert [(row.scenario, row.nodes, row.ours) for row in read(path)] == [("s", 100, 1.0), ("other", 30, 1.0), ("s", 30, 5.0)]
    document = tmp_path / "document.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    update_document(document, read(path))
    update_document(document, read(path))
    text = document.read_text()
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert text.count("| w | 100 | 1 s |") == 1


def test_a_quantile_is_a_value_that_was_seen() -> None:
    assert quantile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
    assert quantile([3.0, 1.0, 2.0, 4.0], 0.51) == 3.0
    assert quantile([3.0, 1.0], 0.99) == 3.0
    assert quantile([], 0.5) is None


def test_a_card_is_followed_until_all_hold_it_and_its_copies_are_counted() -> None:
    world = small(6)
    world.run(world.now + 3.0)
    markers = Markers(world)
    spread = markers.mark(world.processes[1])
    world.run(world.now + 5.0)
    assert sorted(spread.reached) == [0, 2, 3, 4, 5]
    assert 5 <= markers.copies <= 5 * 5 + 5  # every link carries it at most once in each direction
    first, last = spread.after_s[0], spread.share_s(1.0)
    assert last is not None
    assert 0.0 < first <= last < 2.0


def test_traffic_is_all_that_was_sent() -> None:
    world = small()
    traffic = Traffic(world)
    sent = sum(process.bytes_sent for process in world.processes)
    world.run(world.now + 10.0)
    sent = sum(process.bytes_sent for process in world.processes) - sent
    arrived = sum(traffic.payload_bytes.values())
    assert 0.97 * sent <= arrived <= 1.03 * sent  # what crosses either end of the window
    sent_probes = 5 * 4 * 10  # of every node to every other; each comes with its echo, at the slowest once a second
    assert 2 * sent_probes / 2 <= traffic.messages["probe"] <= 2 * 2 * sent_probes * 1.1
    assert traffic.payload_bytes["probe"] == pytest.approx(traffic.messages["probe"] * (9 + 28 / 2), rel=0.05)  # half are echoes
    assert traffic.wire_bytes("probe") == traffic.payload_bytes["probe"] + traffic.messages["probe"] * 60
    traffic.counting = False
    world.run(world.now + 1.0)
    assert sum(traffic.payload_bytes.values()) == arrived


def test_agreement_is_missed_by_a_single_card() -> None:
    world = small(4)
    markers = Markers(world)
    world.run(world.now + 3.0)
    assert Agreement(world).reached()
    spread = markers.mark(world.processes[0])
    agreement = Agreement(world)
    assert len(spread.after_s) < 3
    assert not agreement.reached()
    assert world.run_until(agreement.reached, world.now + 10.0)


def test_a_load_is_wrong_from_the_moment_it_changed() -> None:
    world = small(4)
    load = Load(world)
    world.run(world.now + 20.0)
    assert load.wrong_for_s(1, (99, 99)) is None  # whoever asks has what came meanwhile worked out
    history = load.history[1]
    assert len(history) > 3
    assert load.wrong_for_s(1, history[-1][1]) == 0.0
    before = next(pair for _, pair in reversed(history) if pair != history[-1][1])
    ended_at = next(at for (at, pair), (_, earlier) in itertools.pairwise(reversed(history)) if earlier == before)
    assert load.wrong_for_s(1, before) == pytest.approx(world.now - ended_at)


def test_what_is_reachable_is_what_is_held() -> None:
    blob = bytes(100_000)
    assert 100_000 < reachable_bytes([blob, blob, {"again": blob}]) < 101_500
    rows = {row.work: row.ours for row in SCENARIOS["memory"].measure(40, 1, Options(quick=True))}
    assert rows["memory of one core, counted"] == pytest.approx(rows["memory of one core"], rel=0.15)


def test_arithmetic_starts_from_what_was_measured() -> None:
    config = Options().config
    kb = {"records: card": 2.0, "something else": 0.5}
    costs = Costs(config, 100, kb, {})
    assert costs_at(100, costs) == pytest.approx(2.5)
    assert costs_at(1000, costs) == pytest.approx(0.5 + 2.0 * 999 / 99)
    probes = Costs(config, 100, {"probe": 1.0}, {})
    assert costs_at(10_000, probes) == costs_at(1_000_000, probes) > 0.0  # links are bounded


def test_the_trend_carries_a_straight_line_on_to_the_horizon() -> None:
    def row(work: str, nodes: int, ours: float) -> Figure:
        return figure(scenario="steady", work=work, nodes=nodes, ours=ours, unit="kB/s")

    name = "received per node, with packet headers: "
    rows = [row(f"{name}entries", nodes, 1.0 + nodes / 1000.0) for nodes in (100, 1000)]
    rows += [row(f"{name}probe", nodes, 4.0) for nodes in (100, 1000)]
    told = {(found.work, found.nodes): found.ours for found in trend(rows, Options())}
    assert told["received per node, with packet headers, trend", 10_000] == pytest.approx(4.0 + 1.0 + 2.56)
    assert told["received per node, with packet headers, trend", 1_000_000] == pytest.approx(4.0 + 1.0 + 2.56)
    assert trend(rows[:1], Options()) == []


@pytest.mark.parametrize("nodes", [10, 100])
def test_a_tenth_is_stopped_at_any_time(nodes: int) -> None:
    plan = StallPlan(nodes, 5.0, 205.0, Streams(1).of("stalls"))
    for at in (20.0, 77.0, 190.0):
        assert sum(stall.begin_s <= at < stall.end_s for stall in plan.stalls) == nodes // 10
    assert all(SHORTEST_S <= stall.lasts_s <= LONGEST_S for stall in plan.stalls)
    for index in range(nodes):
        mine = [stall for stall in plan.stalls if stall.index == index]
        assert all(later.begin_s - sooner.end_s >= REST_S for sooner, later in itertools.pairwise(mine))
    stall = plan.stalls[0]
    assert plan.blamed(stall.index, stall.begin_s - 0.1) is None
    assert plan.blamed(stall.index, stall.end_s + 0.1) == stall
    last = max(plan.stalls, key=lambda stall: stall.end_s)
    assert plan.blamed(last.index, last.end_s + BLAME_S + 0.1) is None


def swim(nodes: int, config: SwimConfig) -> tuple[SwimMesh, list[tuple[float, int, int, State]]]:
    told: list[tuple[float, int, int, State]] = []
    mesh = SwimMesh(nodes, 1, config, Line(), lambda *what: told.append(what))
    return mesh, told


@pytest.mark.parametrize("lifeguard", [False, True])
def test_swim_tells_all_of_a_death_and_of_nothing_else(lifeguard: bool) -> None:
    mesh, told = swim(20, SwimConfig(lifeguard=lifeguard))
    mesh.run(30.0)
    assert told == []
    mesh.members[4].kill()
    mesh.run(50.0)
    assert {observer for _, observer, subject, state in told if state is State.DEAD and subject == 4} == set(range(20)) - {4}
    assert {subject for _, _, subject, _ in told} == {4}
    died = [at - 30.0 for at, _, _, state in told if state is State.DEAD]
    suspicion_s = 5.0 * 1.301
    assert suspicion_s < min(died) < max(died) < suspicion_s + 5.0


def test_swim_refutes_a_suspicion_in_time() -> None:
    mesh, told = swim(20, SwimConfig())
    mesh.run(10.0)
    mesh.members[4].pause()
    mesh.run(14.0)
    mesh.members[4].resume()
    mesh.run(30.0)
    states = {state for _, _, subject, state in told if subject == 4}
    assert states == {State.SUSPECT, State.ALIVE}
    assert mesh.members[4].incarnation > 0
    assert all(member.members[4].state is State.ALIVE for member in mesh.members if member.index != 4)


def test_a_stalled_swim_member_accuses_others_because_its_timers_come_first() -> None:
    mesh, told = swim(20, SwimConfig())
    mesh.run(10.0)
    sleeper = mesh.members[4]
    while sleeper._probe is None or sleeper._probe.answered:
        mesh.run(mesh.now + 0.001)
    sleeper.pause()
    mesh.run(mesh.now + 2.0)
    assert all(subject == 4 for _, _, subject, _ in told)
    sleeper.resume()
    assert [(observer, state) for _, observer, subject, state in told if subject != 4] == [(4, State.SUSPECT)]


def test_swim_takes_back_a_death_that_was_none() -> None:
    mesh, told = swim(20, SwimConfig(suspicion_mult=1.0))
    mesh.run(10.0)
    mesh.members[4].pause()
    mesh.run(18.0)
    assert sum(state is State.DEAD for _, _, _, state in told) >= 19
    mesh.members[4].resume()
    mesh.run(40.0)
    assert all(member.members[4].state is State.ALIVE for member in mesh.members if member.index != 4)
    assert all(other.state is State.ALIVE for other in mesh.members[4].members.values())
