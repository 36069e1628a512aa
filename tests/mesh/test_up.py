"""`isochrone up` in a process of its own, with a node that only waits: signals, exit codes and `node.json`."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.nodefile import NODE_FILE, find_node

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, sys, trio
from mesh.config import Ready, StartError, resolve
from mesh.up import run_up

async def run_node(config, ready, shutdown):
    if sys.argv[2] == "fails":
        async with trio.open_nursery():
            raise StartError("port 1 is taken: choose another with --listen")
    ready(Ready("12D3KooWA", ("/ip4/127.0.0.1/udp/1/quic-v1/p2p/12D3KooWA",), "http://127.0.0.1:1"))
    if sys.argv[2] == "ends":
        return
    await shutdown.wait()
    print("draining", flush=True)
    if sys.argv[2] == "hangs":
        await trio.sleep_forever()

try:
    sys.exit(run_up(resolve({"state_dir": sys.argv[1]}, {"HOME": "/nonexistent"}), run_node, as_json=True))
except StartError as error:
    sys.exit(f"refused: {error}")
"""


def start(folder: Path, manner: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), manner], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_drains_and_the_node_file_lasts_from_ready_to_the_end(tmp_path: Path, number: signal.Signals) -> None:
    with start(tmp_path, "drains") as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready == {
            "peer_id": "12D3KooWA",
            "addresses": ["/ip4/127.0.0.1/udp/1/quic-v1/p2p/12D3KooWA"],
            "gateway": "http://127.0.0.1:1",
        }
        assert find_node(tmp_path).pid == process.pid
        process.send_signal(number)
        assert process.stdout.read() == "draining\n"
    assert process.returncode == os.EX_OK
    assert not (tmp_path / NODE_FILE).exists()


def test_second_signal_stops_at_once(tmp_path: Path) -> None:
    with start(tmp_path, "hangs") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "draining\n"
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    assert not (tmp_path / NODE_FILE).exists()


def test_node_that_ends_by_itself_ends_the_program(tmp_path: Path) -> None:
    with start(tmp_path, "ends") as process:
        process.communicate()
    assert process.returncode == os.EX_OK


def test_node_that_cannot_start_is_one_sentence_and_leaves_the_other_nodes_file(tmp_path: Path) -> None:
    (tmp_path / NODE_FILE).write_text("the other node's")
    with start(tmp_path, "fails") as process:
        assert process.stderr is not None
        assert process.stderr.read() == "refused: port 1 is taken: choose another with --listen\n"
    assert process.returncode == 1
    assert (tmp_path / NODE_FILE).read_text() == "the other node's"
