"""The runner with real processes and the real emulator; a small node stands in for the whole one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from mesh.config import ConfigError
from mesh.testnet import command, runner
from mesh.testnet.topology import Topology, preset, topology_from_mapping

ROOT = Path(__file__).parents[3]
PROGRAM = (sys.executable, str(Path(__file__).parent / "small_node.py"))
WAIT_S_MAX = 30.0  # only a broken runner needs it


def three(*engines: str) -> Topology:
    nodes = [{"name": name, "engines": [engine]} for name, engine in zip("abc", engines or ("echo",) * 3, strict=True)]
    return topology_from_mapping({"nodes": nodes, "rtt_ms": [[0, 4, 30], [4, 0, 30], [30, 30, 0]]})


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_mesh_comes_together_at_its_distances_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with runner.testnet(three(), folder=tmp_path, program=PROGRAM) as net:
        pids = [node.pid for node in net.nodes] + [net.emulator.pid]
        assert len({node.peer_id for node in net.nodes}) == 3
        assert all(node.gateway.startswith("http://127.0.0.1:") and node.ready_s > 0 for node in net.nodes)
        assert net.converged_s is not None
        views = {}
        with trio.fail_after(WAIT_S_MAX):
            while not all(pair["measured_ms"] for pair in command.pairs(net, views)):
                views = {node.name: await net.peers(node) for node in net.nodes}
        for pair in command.pairs(net, views):
            assert pair["measured_ms"] >= pair["rtt_ms"]
        assert all(runs(pid) for pid in pids)
    assert not any(runs(pid) for pid in pids)
    assert net.links["forwarded"] > 0
    assert net.links["unknown"] == 0
    assert "serves ['echo']" in net.node("b").log.read_text()
    assert all(node.process.returncode == 0 for node in net.nodes)


async def test_killed_node_is_gone_and_can_be_started_again(tmp_path: Path) -> None:
    async with runner.testnet(three(), folder=tmp_path, program=PROGRAM) as net:
        node = net.node("b")
        before = (node.pid, node.peer_id)
        await net.kill("b")
        assert not node.alive
        assert node.process.returncode == -signal.SIGKILL
        assert await net.peers(node) == []
        await net.converge(WAIT_S_MAX)  # the living ones
        await net.start(node)
        assert (node.pid != before[0], node.peer_id) == (True, before[1])
        await net.converge(WAIT_S_MAX)
        assert await node.terminate() == 0
    with pytest.raises(KeyError):
        net.node("d")


async def test_second_run_in_the_same_folder_keeps_the_keys(tmp_path: Path) -> None:
    async with runner.testnet(three(), folder=tmp_path, program=PROGRAM, converge=False) as net:
        first = [node.peer_id for node in net.nodes]
        assert net.converged_s is None
    async with runner.testnet(three(), folder=tmp_path, program=PROGRAM, converge=False) as net:
        assert [node.peer_id for node in net.nodes] == first


async def test_node_that_dies_at_start_is_told_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(runner.TestnetError, match=r"node b ended with 1 before it was ready:\n(.*\n)*the engine is not there"):
        async with runner.testnet(three("echo", "echo:dies", "echo"), folder=tmp_path, program=PROGRAM):
            pytest.fail("the mesh stands without one of its nodes")
    assert not any(runs(pid) for pid in pids_under(tmp_path))


async def test_cancelled_start_leaves_nothing_behind(tmp_path: Path) -> None:
    with trio.move_on_after(WAIT_S_MAX) as scope:
        async with trio.open_nursery() as nursery:

            async def cancel_once_all_run() -> None:
                while len(pids_under(tmp_path)) < 3:
                    await trio.lowlevel.checkpoint()
                scope.cancel()

            nursery.start_soon(cancel_once_all_run)
            async with runner.testnet(three("echo", "echo:silent", "echo"), folder=tmp_path, program=PROGRAM):
                pytest.fail("a node that never says ready counted as ready")
    assert pids_under(tmp_path) == []


async def test_node_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    async with runner.testnet(three("echo", "echo:stubborn", "echo"), folder=tmp_path, program=PROGRAM, converge=False) as net:
        assert await net.node("b").terminate(grace_s=0.1) == -signal.SIGKILL


async def test_mesh_that_does_not_come_together_says_who_misses_whom(tmp_path: Path) -> None:
    async with runner.testnet(three(), folder=tmp_path, program=PROGRAM, converge=False) as net:
        net.emulator.kill()
        await net.kill("a")
        await net.start(net.node("a"))
        with pytest.raises(runner.TestnetError, match="a misses b, c"):
            await net.converge(0.5)


def pids_under(folder: Path) -> list[int]:
    """Processes whose command line names the folder."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and int(path.name) != os.getpid():
            try:
                words = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if any(str(folder) in word for word in words) and runs(int(path.name)):
                found.append(int(path.name))
    return found


def test_children_die_with_a_starter_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, trio\nfrom pathlib import Path\nfrom mesh.testnet import runner\nfrom mesh.testnet.topology import preset\n"
        "async def main():\n"
        "    mesh = preset('metro', 3).with_engines(['echo'])\n"
        "    async with runner.testnet(mesh, folder=Path(sys.argv[1]), program=sys.argv[2:]) as net:\n"
        "        print(*(node.pid for node in net.nodes), net.emulator.pid, flush=True)\n"
        "        await trio.sleep_forever()\n"
        "trio.run(main)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), *PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 4
        assert all(runs(pid) for pid in pids)
        process.kill()
    while any(runs(pid) for pid in pids):  # the suite's time limit ends it where they stay
        os.sched_yield()


def test_flags_that_contradict_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave --preset, --matrix and --nodes out"):
        command.choose_topology(command.Wish(preset="metro", file=tmp_path / "x.toml"))
    with pytest.raises(ConfigError, match='did you mean "onnx"'):
        command.choose_topology(command.Wish(engines=["onxx"]))
    assert command.choose_topology(command.Wish(nodes=3, engines=["echo"])) == preset("metro", 3).with_engines(["echo"])


def test_command_prints_the_mesh_and_the_result_as_json_lines(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom mesh.testnet import command, runner\n"
        "from mesh.testnet.topology import preset\n"
        "runner.program_path = lambda: sys.argv[2]\n"
        "mesh = preset('metro', 3).with_engines(['echo'])\n"
        "sys.exit(command.run_testnet(mesh, directory=Path(sys.argv[1]), for_s=None, as_json=True))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), PROGRAM[1]], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        stood = json.loads(process.stdout.readline())
        assert stood["ready"]
        assert len(stood["nodes"]) == 3
        process.terminate()
        result = json.loads(process.stdout.readline())
    assert process.returncode == 0
    assert result["ok"]
    assert result["ended"] == "signal"
    assert len(result["pairs"]) == 6
    assert result["links"]["forwarded"] > 0
    assert not any(runs(node["pid"]) for node in stood["nodes"])
