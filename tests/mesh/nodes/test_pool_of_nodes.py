"""Tensors between nodes by a pool that both map: here a plain file, as anybody can try it."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trio
from mesh_nodes import MeshNode, Start, eventually, introduced, soon_told

from mesh import client
from mesh.engines.echo import EchoEngine
from mesh.fabric import cxl_opener, fabrics
from mesh.fabric.cxl import CxlSession
from mesh.fabric.pool import NewPool, create_pool, open_pool
from mesh.poolcommands import look
from protocol.errors import RemoteProtocolError
from protocol.fabric import FabricConfig, Kind, owners
from protocol.fabric.pools import LINE_BYTES, SlotHead, SlotState, decode_slot, encode_slot
from protocol.identity import parse_peer_id
from protocol.inference import Feature, Finished, InferenceRequest, Tensor

PATIENT = FabricConfig(take_s=20.0)
ONE_ENGINE = pytest.mark.parametrize("quic_engines", [("qh3",)], indirect=True, ids="-".join)


def asking(n_bytes: int) -> InferenceRequest:
    array = (np.arange(n_bytes // 4) % 251).astype("f4")
    tensors = (
        Tensor("input", "f4", array.shape, memoryview(array).cast("B")),
        Tensor("ids", "i8", (3,), memoryview(np.arange(3)).cast("B")),
    )
    return InferenceRequest(os.urandom(16), Feature.TENSORS, "echo", b"", tensors, deadline_s=20.0)


async def ask(node: MeshNode, request: InferenceRequest):
    """Whether the answer is the request's tensors, by which way these went, and the answer's tensors."""
    async with node.service.dispatcher.submit(request) as answer:
        replies = [reply async for reply in answer]
        route = answer.route
    assert isinstance(replies[-1], Finished), replies[-1]
    same = [(t.name, t.dtype, t.shape, bytes(t.data)) for t in replies[0].tensors] == [
        (t.name, t.dtype, t.shape, bytes(t.data)) for t in request.tensors
    ]
    return same, next(c.fabric for c in route.candidates if c.peer_id == route.chosen), replies[0].tensors


async def way_and_sameness(node: MeshNode, request: InferenceRequest) -> tuple[bool, str]:
    return (await ask(node, request))[:2]


def patient(service) -> None:
    service.fabrics.config = PATIENT
    soon_told(service)


@pytest.fixture(autouse=True)
def _without_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fabric is waited for longer than a request would wait: on a busy machine the first one took the stream."""
    monkeypatch.setattr(fabrics, "OPEN_S_MAX", 10.0)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    path = tmp_path / "pool"
    create_pool(path, NewPool(64 << 20), os.urandom(16))
    return path


def member(node: MeshNode):
    return node.service.fabrics._openers[Kind.CXL].pools[0].member


def session(node: MeshNode, other: MeshNode) -> CxlSession:
    return node.service.fabrics._sessions[other.peer_id]


async def pair(start: Start, pool: Path, **named) -> tuple[MeshNode, MeshNode]:
    b = await start(EchoEngine(), tune=patient, fabric="cxl", cxl_pools=(pool,), **named)
    a = await start(join=(b,), tune=patient, fabric="cxl", cxl_pools=(pool,), **named)
    await introduced(a, b)
    await shared(a, b)
    return a, b


async def shared(*nodes: MeshNode, pool_id: bytes = b"") -> None:
    """Wait until all nodes are in the pool, that of an id where one is given, and have heard so of one another."""

    def has_heard(one: MeshNode, other: MeshNode) -> bool:
        found = one.service.fabrics._find_shared(other.peer_id)
        return any(match.kind is Kind.CXL and pool_id in (b"", match.pool) for match in found)

    await eventually(lambda: all(has_heard(a, b) for a in nodes for b in nodes if a is not b), 15)
    for node in nodes:
        node.service.fabrics._matched.clear()


async def test_large_tensors_go_by_the_pool_and_come_back_by_it(start: Start, pool: Path) -> None:
    a, b = await pair(start, pool)
    for n in range(3):
        assert await way_and_sameness(a, asking((3 << 20) + 4 * n)) == (True, "cxl")
    assert await way_and_sameness(a, asking(1024)) == (True, "")
    status = a.service.fabrics.status()
    assert status["kinds"] == ["cxl"]
    assert status["open"][b.name]["kind"] == "cxl"
    assert status["open"][b.name]["regions_mapped"] >= 1
    assert status["cxl"]["pools"][0]["pool"] == str(pool)
    assert b.peer_id in a.service.node.ways


@ONE_ENGINE
async def test_a_node_that_has_not_heard_of_the_others_pool_lets_it_in_all_the_same(start: Start, pool: Path) -> None:
    a, b = await pair(start, pool)
    b.service.fabrics._find_shared = lambda _peer: ()
    assert await way_and_sameness(a, asking(2 << 20)) == (True, "cxl")


@ONE_ENGINE
async def test_the_bytes_lie_in_the_slabs_of_the_giver_and_nowhere_else(start: Start, pool: Path) -> None:
    a, b = await pair(start, pool)
    request = asking(3 << 20)
    _, way, tensors = await ask(a, request)
    assert way == "cxl"
    there = await trio.Path(pool).read_bytes()
    body = bytes(request.tensors[0].data)
    layout = member(a).pool.layout
    (own,) = session(a, b)._shelf.own.values()
    (others,) = session(b, a)._shelf.own.values()
    for owned in (own, others):
        at = layout.slab_at(owned.region.run.first) + LINE_BYTES
        assert there[at : at + len(body)] == body
    assert own.region.run.first != others.region.run.first
    assert bytes(tensors[0].data) == body
    assert tensors[0].data.readonly


@ONE_ENGINE
async def test_regions_are_used_again_once_nobody_looks_at_them(start: Start, pool: Path) -> None:
    a, b = await pair(start, pool)
    for _ in range(12):
        assert await way_and_sameness(a, asking(8 << 20)) == (True, "cxl"), "64 MiB hold them only where they come back"
    gc.collect()
    await eventually(lambda: all(own.is_free for own in session(a, b)._shelf.own.values()))
    await eventually(lambda: not member(a).owner._holds.any() and not member(b).owner._holds.any())


@ONE_ENGINE
async def test_tensors_that_are_kept_stay_as_they_are_when_their_giver_is_gone(start: Start, pool: Path) -> None:
    a, b = await pair(start, pool)
    request = asking(3 << 20)
    same, way, kept = await ask(a, request)
    assert (same, way) == (True, "cxl")
    await b.stop()
    await eventually(lambda: a.service.fabrics.status()["open"] == {})
    used = member(a).owner._holds > 0
    assert used.sum() >= 3 << 20 >> 16
    run = member(a).owner.claim(int(member(a).owner.free_slabs))
    assert run is None or not used[run.first : run.first + run.count].any()
    assert bytes(kept[0].data) == bytes(request.tensors[0].data)


@ONE_ENGINE
async def test_a_full_pool_leaves_tensors_to_the_stream(start: Start, pool: Path) -> None:
    a, b = await pair(start, pool)
    assert await way_and_sameness(a, asking(2 << 20)) == (True, "cxl")
    hog = member(b).owner
    while hog.claim(1) is not None:
        pass
    gc.collect()
    assert hog.free_slabs == 0
    same, way = await way_and_sameness(a, asking(6 << 20))
    assert (same, way) == (True, ""), "there is no room for it, which is no fault"
    assert a.logged("fabric closed for a while") == []
    assert list(a.service.fabrics.status()["open"]) == [b.name]


@ONE_ENGINE
async def test_what_is_allocated_in_the_pool_is_given_without_a_copy(start: Start, pool: Path) -> None:
    a, b = await pair(start, pool)
    await ask(a, asking(1 << 20))
    memory = session(a, b).allocate(4 << 20)
    memory[:4] = (1, 2, 3, 4)
    given = session(a, b).give([Tensor("x", "f4", (1 << 20,), memory.data)], 30.0, 0.0)
    assert given.copied_bytes == 0
    (tensor,) = session(b, a).take(given.lease, given.places)
    memory[0] = 9
    assert bytes(tensor.data[:4]) == b"\x09\x02\x03\x04"


@ONE_ENGINE
async def test_an_old_lease_and_one_of_another_owner_or_epoch_are_refused(start: Start, pool: Path) -> None:
    a, b = await pair(start, pool)
    await ask(a, asking(1 << 20))
    gives, takes = session(a, b), session(b, a)
    given = gives.give(asking(1 << 20).tensors, 30.0, 0.0)
    assert refused(takes, given, epoch=given.lease.epoch + 1) == "STALE_LEASE"
    assert refused(takes, given, region=given.lease.region + 1) == "STALE_LEASE"
    assert refused(takes, given, length=given.lease.length + 64) == "STALE_LEASE"
    (b_own, *_) = takes._shelf.own.values()
    assert refused(takes, given, key=b_own.region.key) == "OUT_OF_BOUNDS", "slabs that are not the peer's"
    assert refused(takes, given, key=b"\xff" * 8) == "OUT_OF_BOUNDS"
    assert refused(takes, given, key=b"1234") == "MALFORMED"
    takes.take(given.lease, given.places)
    assert refused(takes, given) == "STALE_LEASE", "it was taken before"
    assert not member(b).owner._holds.any() or takes._held, "what was refused is not held"
    a_owner = member(a).owner
    a_owner._window.write(0, encode_slot(SlotHead(SlotState.CLAIMED, a_owner.head.epoch + 1, os.urandom(16))))
    assert refused(takes, given, epoch=given.lease.epoch + 1) == "STALE_LEASE", "the slot has a new owner"
    assert gives.give(asking(1 << 20).tensors, 30.0, 0.0) is None, "who has lost its slot writes nothing more"
    await eventually(lambda: a.service.fabrics.status()["open"] == {})


def refused(session: CxlSession, given, **changes) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        session.take(replace(given.lease, **changes), given.places)
    return caught.value.code.name


@ONE_ENGINE
async def test_a_node_that_lost_its_slot_takes_another_one_and_goes_on(
    start: Start, pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await pair(start, pool)
    assert await way_and_sameness(a, asking(1 << 20)) == (True, "cxl")
    lost = member(a).owner
    lost._window.write(0, encode_slot(SlotHead(SlotState.CLAIMED, lost.head.epoch + 1, os.urandom(16))))
    monkeypatch.setattr(cxl_opener, "RETRY_S", 0.1)
    await eventually(lambda: member(a) is not None and member(a).owner is not lost, 10)
    assert member(a).owner.slot != lost.slot
    await shared(a, b)
    assert await way_and_sameness(a, asking(1 << 20)) == (True, "cxl")


@ONE_ENGINE
async def test_a_copy_of_the_pool_is_another_pool(start: Start, pool: Path, tmp_path: Path) -> None:
    """It has the same id, so cards agree; but what one writes the other does not find, and shared memory is taken instead."""
    copy = tmp_path / "copy"
    await trio.Path(copy).write_bytes(await trio.Path(pool).read_bytes())
    b = await start(EchoEngine(), tune=patient, fabric="cxl", cxl_pools=(pool,))
    a = await start(join=(b,), tune=patient, fabric="cxl", cxl_pools=(copy,))
    await introduced(a, b)
    await shared(a, b)
    assert await way_and_sameness(a, asking(1 << 20)) == (True, "")
    assert a.service.node.ways == {}
    assert a.faults() == b.faults() == {}


@ONE_ENGINE
async def test_a_tagged_pool_is_copied_from_and_checked(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "tagged"
    create_pool(path, NewPool(64 << 20, tagged=True), os.urandom(16))
    a, _ = await pair(start, path)
    assert await way_and_sameness(a, asking(3 << 20)) == (True, "cxl")
    publish = CxlSession.give

    def spoil(self, tensors, lifetime_s, now):
        given = publish(self, tensors, lifetime_s, now)
        given.own.region.writable[100] ^= 1  # another owner writes where it must not
        return given

    CxlSession.give = spoil
    try:
        same, way = await way_and_sameness(a, asking(3 << 20))
    finally:
        CxlSession.give = publish
    assert (same, way[:36]) == (True, "cxl, then the stream: refused: corru")


@pytest.mark.skipif(shutil.which("cc") is None, reason="the helper is compiled, and there is no compiler")
@ONE_ENGINE
async def test_a_pool_that_needs_flushes_carries_tensors_too(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "flushed"
    create_pool(path, NewPool(64 << 20, coherent=False), os.urandom(16))
    a, _ = await pair(start, path)
    for _ in range(3):
        assert await way_and_sameness(a, asking(5 << 20)) == (True, "cxl")
    assert "flushed by" in a.service.fabrics.status()["cxl"]["pools"][0]["memory"]


@ONE_ENGINE
async def test_a_node_without_its_pool_says_so_and_joins_when_there_is_one(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "later"
    monkeypatch.setattr(cxl_opener, "RETRY_S", 0.1)
    a = await start(EchoEngine(), fabric="cxl", cxl_pools=(path,))
    await eventually(lambda: "isochrone pool create" in a.service.fabrics.status()["absent"]["cxl"])
    create_pool(path, NewPool(16 << 20), os.urandom(16))
    await eventually(lambda: a.service.fabrics.status()["kinds"] == ["cxl"])


@ONE_ENGINE
async def test_a_killed_owner_is_found_dead_and_its_slot_has_a_new_epoch(
    start: Start, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real process, killed while its request is under way."""
    monkeypatch.setattr(owners, "DEAD_S", 3.0)
    a = await start(tune=patient, fabric="cxl", cxl_pools=(pool,))
    command = [
        sys.executable, "node.py", "up", "--json", "--open", "--network", "test", "--engine", "echo",
        "--state-dir", str(tmp_path / "process"), "--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--gateway", "127.0.0.1:0",
        "--bootstrap", str(a.address), "--fabric", "cxl", "--cxl-pool", str(pool),
    ]  # fmt: skip
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = await trio.to_thread.run_sync(lambda: subprocess.Popen(command, **pipes))
    try:
        told = json.loads(await trio.to_thread.run_sync(process.stdout.readline))
        peer = parse_peer_id(told["peer_id"])
        await eventually(lambda: a.knows(peer), 20)
        await eventually(lambda: bool(a.service.fabrics._find_shared(peer)), 20)
        a.service.fabrics._matched.clear()
        same, way, kept = await ask(a, asking(2 << 20))
        assert (same, way) == (True, "cxl")
        theirs = a.service.fabrics._sessions[peer].theirs
        assert member(a).owner.is_owner(theirs)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_in_vain, a)
            await trio.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            nursery.cancel_scope.deadline = trio.current_time() + 10
        seen = member(a).pool
        at = seen.layout.slot_at(theirs.slot)
        await eventually(lambda: decode_slot(seen.read(at)) == SlotHead(SlotState.FREE, theirs.epoch + 1), 20)
        assert bytes(kept[0].data) == bytes(asking(2 << 20).tensors[0].data), "what is looked at stays"
        assert not member(a).owner.is_owner(theirs), "a lease of the dead is stale from now on"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def ask_in_vain(node: MeshNode) -> None:
    async with node.service.dispatcher.submit(asking(32 << 20)) as answer:
        async for _ in answer:
            pass


def test_a_process_that_writes_where_it_only_reads_dies(pool: Path) -> None:
    """What a peer maps for reading the kernel does not let it write to."""
    code = (
        "import ctypes, os, sys; from pathlib import Path; from mesh.fabric.pool import open_pool\n"
        "pool = open_pool(Path(sys.argv[1])); print('open', flush=True)\n"
        "ctypes.memset(pool._address + pool.layout.slabs_at, 1, 1); print('written')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(pool)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGSEGV, "open\n")
    with pytest.raises(TypeError):
        open_pool(pool)._read[0] = 1
    array = open_pool(pool).array(0, LINE_BYTES)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


async def pools_of(node: MeshNode, count: int) -> None:
    """Wait until a node is a member of so many pools."""
    await eventually(lambda: len(node.service.fabrics._advert.pools) == count, 15)


def pool_with(node: MeshNode, other: MeshNode) -> Path:
    """The pool by which a node has its fabric with another one."""
    open_pools = node.service.fabrics._openers[Kind.CXL].pools
    return next(pool.path for pool in open_pools if pool.member is session(node, other).member)


@ONE_ENGINE
async def test_a_node_of_several_pools_has_each_peer_in_the_pool_that_both_have(start: Start, tmp_path: Path) -> None:
    """Both peers are in one pool with it and in no pool with each other, whoever opens the fabric."""
    left, right, alone = (tmp_path / name for name in ("left", "right", "alone"))
    for path in (left, right, alone):
        create_pool(path, NewPool(64 << 20), os.urandom(16))
    named = {"tune": patient, "fabric": "cxl"}
    b = await start(EchoEngine(), cxl_pools=(alone, left, right), **named)
    a = await start(join=(b,), cxl_pools=(left,), **named)
    c = await start(join=(b,), cxl_pools=(right,), **named)
    await introduced(a, b)
    await introduced(c, b)
    await pools_of(b, 3)
    for one, path in ((a, left), (c, right)):
        await shared(one, b)
        if one is c:
            assert await b.service.fabrics.session(c.peer_id) is not None
        assert await way_and_sameness(one, asking(3 << 20)) == (True, "cxl")
        assert pool_with(one, b) == pool_with(b, one) == path
    told = [told["pool"] for told in b.service.fabrics.status()["cxl"]["pools"]]
    assert told == [str(alone), str(left), str(right)]
    assert a.service.fabrics._find_shared(c.peer_id) == ()


@ONE_ENGINE
async def test_of_several_pools_that_both_have_the_one_of_the_least_id_is_taken(start: Start, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    create_pool(first, NewPool(64 << 20), bytes([9]) * 16)
    create_pool(second, NewPool(64 << 20), bytes([3]) * 16)
    b = await start(EchoEngine(), tune=patient, fabric="cxl", cxl_pools=(first, second))
    a = await start(join=(b,), tune=patient, fabric="cxl", cxl_pools=(second, first))
    await introduced(a, b)
    await pools_of(a, 2)
    await pools_of(b, 2)
    await shared(a, b, pool_id=bytes([3]) * 16)
    assert await way_and_sameness(a, asking(3 << 20)) == (True, "cxl")
    assert pool_with(a, b) == pool_with(b, a) == second


@ONE_ENGINE
async def test_a_pool_that_is_gone_or_named_twice_is_told_and_the_others_are_used(
    start: Start, pool: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(pool)
    a = await start(EchoEngine(), fabric="cxl", cxl_pools=(tmp_path / "nothing", pool, link))
    await pools_of(a, 1)

    def told() -> list[dict]:
        return a.service.fabrics.status()["cxl"]["pools"]

    await eventually(lambda: "isochrone pool create" in str(told()[0].get("absent")), 10)
    await eventually(lambda: sorted("another path" in str(row.get("absent")) for row in told()[1:]) == [False, True], 10)
    assert a.service.fabrics.status()["kinds"] == ["cxl"]


@ONE_ENGINE
async def test_a_light_node_that_is_told_a_pool_passes_tensors_by_it(start: Start, pool: Path) -> None:
    b = await start(EchoEngine(), tune=patient, fabric="cxl", cxl_pools=(pool,))
    array = np.arange(1 << 20, dtype="f4")
    async with client.connect([str(b.address)], network="test", fabric="cxl", cxl_pool=[str(pool)]) as mesh:
        ways = []
        with trio.fail_after(20):
            while "cxl" not in ways:  # what is asked before both have heard of the other's pool takes the stream
                answer = await mesh.infer("echo", {"x": array})
                assert np.array_equal(answer["x"], array)
                route = await answer.route()
                ways.append(next(row["fabric"] for row in route.candidates if row["peer_id"] == route.node))
        (opened,) = b.service.fabrics.status()["open"].values()
        assert opened["kind"] == "cxl"
        assert opened["mapped_bytes"] >= array.nbytes
        seen = open_pool(pool, writes=False)
        slots = {slot: seen.read(seen.layout.slot_at(slot), 2 * LINE_BYTES) for slot in range(seen.layout.slots)}
        names = {owner.name for owner in look(seen, slots).owners}
        seen.close()
        assert names == {b.name, (await mesh.status())["peer_id"]}


async def test_a_light_node_takes_fabrics_by_the_words_of_the_settings() -> None:
    wrong = [{"fabric": "shm,nvlink"}, {"rdma_device": ["a b"]}, {"fabric": "shm", "cxl_pool": ["/p"]}, {"cxl_pool": ["/p"] * 5}]
    for named in wrong:
        with pytest.raises(client.BadInputError):
            async with client.connect(["/ip4/127.0.0.1/udp/9/quic-v1"], network="test", **named):
                pass
        with pytest.raises(client.BadInputError), client.sync.connect(network="test", **named):
            pass
