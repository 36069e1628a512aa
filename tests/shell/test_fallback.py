"""How soon tensors take the stream where RDMA fails, on virtual machines: nothing takes time but waiting."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import trio
from emulated_rdma import Device, EmulatedOpener, Ether, Posted, emulate
from virtual_mesh import ShellMesh, ShellNode, play, within

from mesh.fabric import Kinds
from mesh.fabric.fabrics import OPEN_S_MAX
from mesh.fabric.rdma.given import RdmaGiven
from mesh.fabric.rdma.wire import STALL_S
from mesh.fabric.verbs.objects import Did
from mesh.service import Service
from protocol.inference import Feature, Finished, InferenceRequest, Tensor

FALLBACK_S_MAX = 0.2
"""Seconds from the first sign that a fabric does not carry tensors to their first bytes on the stream (ISO-FAB-018)."""
SIZE_BYTES = 2 << 20
"""Eight pieces of what a device writes at once."""


class Pair:
    """Two nodes with an emulated device each, and no other fabric."""

    def __init__(self) -> None:
        ether = Ether()
        self.devices = [Device(ether), Device(ether)]
        self.fell_back: list[float] = []
        self._n_made = 0

    def tune(self, service: Service) -> None:
        fabrics, device = service.fabrics, self.devices[self._n_made]
        self._n_made += 1
        opener = EmulatedOpener(self._n_made, device)
        fabrics._openers = {opener.kind: opener}
        fabrics._absent = Kinds().absent
        fabrics._tell()
        told = fabrics.fell_back

        def fell_back(kind, failed_at: float) -> None:
            self.fell_back.append(trio.current_time())
            told(kind, failed_at)

        fabrics.fell_back = fell_back

    async def start(self, mesh: ShellMesh) -> tuple[ShellNode, ShellNode]:
        b = await mesh.start(tune=self.tune)
        a = await mesh.start(join=[b], tune=self.tune, engines=())
        await within(10.0, lambda: a.knows(b))
        await trio.sleep(6.0)
        return a, b


async def ask(node: ShellNode) -> tuple[bool, str]:
    """Whether the answer is the request's tensor, and by which way this one went."""
    data = np.random.default_rng(1).bytes(SIZE_BYTES)
    tensor = Tensor("x", "u1", (SIZE_BYTES,), memoryview(data))
    request = InferenceRequest(os.urandom(16), Feature.TENSORS, "echo", b"", (tensor,), deadline_s=20.0)
    async with node.service.dispatcher.submit(request) as answer:
        replies = [reply async for reply in answer]
        route = answer.route
    assert isinstance(replies[-1], Finished), replies[-1]
    return bytes(replies[0].tensors[0].data) == data, next(c.fabric for c in route.candidates if c.peer_id == route.chosen)


BREAKS: dict[str, Callable[[Device, Device], None]] = {
    "a write fails": lambda asker, _: asker.fail(),
    "the asker's port goes down": lambda asker, _: asker.port_down(),
    "the answerer's port goes down": lambda _, answerer: answerer.port_down(),
    "the asker's device stands still": lambda asker, _: asker.stand_still(),
    "the answerer's device stands still": lambda _, answerer: answerer.stand_still(),
}
MOMENTS = {"leasing": (Did.BIND, 1), "writing": (Did.WRITE, 5), "checking": (Did.INVALIDATE, 1)}
"""When it breaks: as soon as so many such requests of the transfer have been posted."""


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("name", BREAKS)
def test_tensors_take_the_stream_within_200_ms_of_the_first_error(
    name: str, moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulate(monkeypatch)
    pair = Pair()
    answerer, asker = pair.devices
    n_posted: Counter[Did] = Counter()

    def break_at(posted: Posted) -> None:
        n_posted[posted.did] += 1
        did, count = MOMENTS[moment]
        if n_posted[did] == count:
            asker.on_post = answerer.on_post = lambda _posted: None
            BREAKS[name](asker, answerer)

    async def scenario(mesh: ShellMesh) -> None:
        a, b = await pair.start(mesh)
        assert await ask(a) == (True, "rdma")
        (asker if moment == "writing" else answerer).on_post = break_at
        same, way = await ask(a)
        assert same
        if name == "a write fails" and moment == "checking":  # all are written
            assert (way, pair.fell_back) == ("rdma", [])
            return
        # Where the asker's device breaks after it has written, the request has gone by RDMA, and its answer falls back.
        giver = b if way == "rdma" else a
        assert way.startswith("rdma, then the stream: ") or moment == "checking"
        failed_at = min(at for at in (asker.failed_at, answerer.failed_at) if at is not None)
        assert 0.0 <= pair.fell_back[0] - failed_at <= FALLBACK_S_MAX
        told = giver.service.fabrics.status()["fallbacks"]
        assert told["count"] == 1
        assert told["longest_s"] <= FALLBACK_S_MAX
        assert 'isochrone_fabric_fallback_seconds_count{kind="rdma"} 1.0' in giver.metrics()

    play(scenario, tmp_path)


def test_a_pair_over_which_nothing_comes_back_does_not_come_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(monkeypatch)
    pair = Pair()
    _, asker = pair.devices

    async def scenario(mesh: ShellMesh) -> None:
        a, b = await pair.start(mesh)
        asker.stand_still()
        began = trio.current_time()
        assert await a.service.fabrics.session(b.peer_id) is None
        assert STALL_S <= trio.current_time() - began < OPEN_S_MAX, "soon enough to try another"
        assert await ask(a) == (True, "")
        assert a.service.fabrics.status()["open"] == {}
        await trio.sleep(0.1)
        assert b.service.fabrics.status()["open"] == {}
        assert pair.fell_back == [], "nothing had been offered"
        asker.stands_still = False
        asker.has_work.set()
        await trio.sleep(35.0)
        assert await ask(a) == (True, "rdma"), (
            "after a while it is tried again, and the other side holds nothing against this one"
        )

    play(scenario, tmp_path)


@pytest.mark.parametrize("work", ["copying", "hashing"])
def test_what_is_done_to_tensors_ends_with_the_fabric(work: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(monkeypatch)
    pair = Pair()
    asker = pair.devices[1]
    placed = RdmaGiven.placed
    n_begun, n_pieces = 0, 0

    def fails_meanwhile(given: RdmaGiven, *arguments) -> Iterator[tuple[int, memoryview]]:
        nonlocal n_begun, n_pieces
        n_begun += 1
        for piece in placed(given, *arguments):
            yield piece
            if n_begun == (1 if work == "copying" else 2):
                n_pieces += 1
                for made in asker.sessions:
                    made.close("the RDMA port has gone down")

    async def scenario(mesh: ShellMesh) -> None:
        a, _ = await pair.start(mesh)
        assert await ask(a) == (True, "rdma")
        monkeypatch.setattr(RdmaGiven, "placed", fails_meanwhile)
        same, way = await ask(a)
        assert (same, way[:22]) == (True, "rdma, then the stream:")

    play(scenario, tmp_path)
    assert n_pieces == 1
