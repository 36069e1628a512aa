"""`isochrone conformance` as a person and a program meet it."""

import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import trio
from subject_nodes import subject_node

from mesh.admission.files import ROOT_FILE, locked, write_network
from mesh.conformance.command import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from mesh.conformance.index import load
from protocol.identity import Identity
from protocol.libp2p.ping import PING_PROTOCOL

ROOT = Path(__file__).parent.parent.parent
COMMAND = [sys.executable, "-m", "node", "conformance"]


async def conformance(*arguments: str) -> subprocess.CompletedProcess:
    return await trio.run_process([*COMMAND, *arguments], capture_stdout=True, capture_stderr=True, check=False, cwd=ROOT)


async def test_a_sound_node_passes_and_the_report_says_so(tmp_path):
    async with subject_node(tmp_path) as subject:
        ended = await conformance(str(subject.address), "--only", "ISO-CONV", "--json")
    assert ended.returncode == 0, ended.stderr.decode()
    report = json.loads(ended.stdout)
    told = {row["id"]: row["result"] for row in report["sentences"]}
    assert told["ISO-CONV-011"] == "pass"
    assert all(name.startswith("ISO-CONV") for name in told)
    assert report["network"] == "conformance-test"
    assert report["summary"]["fail"] == 0
    assert {case["result"] for case in report["cases"]} == {"pass"}


async def test_the_table_has_a_row_for_a_sentence(tmp_path):
    async with subject_node(tmp_path) as subject:
        ended = await conformance(str(subject.address), "--only", "iso-transport-080")
    assert ended.returncode == 0
    assert "ISO-TRANSPORT-080" in ended.stdout.decode()
    assert "cases in" in ended.stdout.decode()


async def test_a_broken_node_is_told_by_the_exit_code(tmp_path):
    def spoil(service):
        service.transport._handlers.pop("/ipfs/ping/1.0.0")

    async with subject_node(tmp_path, break_it=spoil) as subject:
        ended = await conformance(str(subject.address), "--only", "ISO-TRANSPORT-080", "--json")
    assert ended.returncode == EXIT_FAILED
    (row,) = json.loads(ended.stdout)["sentences"]
    assert row["result"] == "fail"
    assert "agreement on /ipfs/ping/1.0.0" in row["reason"]


async def test_a_private_node_is_tried_on_its_refusals_and_by_its_key_on_more(tmp_path):
    directory, root = tmp_path / "network", Identity.from_seed(bytes([32]) * 32)
    with locked(directory):
        write_network(directory, root, "test", directory / ROOT_FILE)
    async with subject_node(tmp_path / "node", root=root) as subject:
        ended = await conformance(str(subject.address))
        told = ended.stdout.decode()
        assert ended.returncode == 0, told
        assert "ISO-ADM-003" in told
        assert "ISO-GOS-001" not in told
        assert "The rest was not tried: the node lets members alone in" in told
        ended = await conformance(str(subject.address), "--only", "ISO-CONV", "--json", "--network-dir", str(directory))
        assert ended.returncode == 0, ended.stderr.decode()
        assert {case["result"] for case in json.loads(ended.stdout)["cases"]} == {"pass"}
        ended = await conformance(str(subject.address), "--network-dir", str(tmp_path))
        assert ended.returncode == EXIT_USAGE
        assert "there is no key of a network" in ended.stderr.decode()


async def test_an_interrupt_loses_nothing(tmp_path):
    services = []
    async with subject_node(tmp_path, break_it=services.append) as subject, trio.open_nursery() as nursery:
        # Of a silent ping stream the end comes after a minute: while that is waited for, the others are over.
        arguments = [*COMMAND, str(subject.address), "--only", "ISO-TRANSPORT-080", "--slow", "--json"]
        start = partial(trio.run_process, arguments, stdout=subprocess.PIPE, check=False, cwd=ROOT)
        process = await nursery.start(start)
        transport = services[0].transport
        with trio.fail_after(30):
            # The look at the node, two short cases, the long one.
            while transport.endpoint.counters.accepted < 4 or not any(
                connection.serving.get(PING_PROTOCOL) for connection in transport.connections.values()
            ):
                await trio.lowlevel.checkpoint()
        process.send_signal(signal.SIGINT)
        output = b""
        async for chunk in process.stdout:
            output += chunk
        assert await process.wait() == EXIT_INTERRUPTED
    report = json.loads(output)
    assert [row["result"] for row in report["sentences"]] == ["not run"]
    assert sorted(case["name"] for case in report["cases"] if case["result"] == "pass") == [
        "half_a_ping_waits_for_its_rest",
        "ping_is_echoed_until_the_end",
    ]


async def test_what_cannot_be_tried_is_said_in_a_sentence():
    async def is_said(arguments: tuple[str, ...], code: int, said: str) -> None:
        ended = await conformance(*arguments)
        assert ended.returncode == code
        assert said in ended.stderr.decode()
        assert ended.stdout == b""

    cases = (
        ((), EXIT_USAGE, "name an address"),
        (("/ip4/127.0.0.1/tcp/1",), EXIT_USAGE, "/ip4/127.0.0.1/tcp/1"),
        (("/ip4/127.0.0.1/udp/1/quic-v1", "--only", "ISO-NONE"), EXIT_USAGE, "no sentence has such an id"),
        (("/ip4/127.0.0.1/udp/1/quic-v1",), EXIT_FAILED, "cannot be tested"),
    )
    async with trio.open_nursery() as nursery:
        for case in cases:
            nursery.start_soon(is_said, *case)


async def test_every_sentence_is_listed():
    ended = await conformance("--list", "--json")
    assert ended.returncode == 0
    assert [row["id"] for row in json.loads(ended.stdout)] == [sentence.id for sentence in load()]
