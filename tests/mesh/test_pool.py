"""Pools in plain files: who may have what at a time, what becomes of the dead, and what hostile bytes in them do."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.fabric.owner import FullError, Owner, carry_out, claim_slot
from mesh.fabric.pool import NewPool, Pool, PoolError, create_pool, file_system_of, look_at, open_pool
from protocol.fabric import owners
from protocol.fabric.owners import find_run
from protocol.fabric.pools import (
    LINE_BYTES,
    PAGE_BYTES,
    SLOTS_MAX,
    PoolFlags,
    SlotHead,
    SlotState,
    Token,
    encode_slot,
    encode_superblock,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    create_pool(tmp_path / "pool", NewPool(16 << 20), os.urandom(16))
    return tmp_path / "pool"


def owner_of(pool: Pool, seed: int = 0) -> Owner:
    return Owner(pool, f"owner {seed}", os.urandom, random.Random(seed), trio.current_time)


async def settled(path: Path, seed: int = 0) -> Owner:
    owner = owner_of(open_pool(path), seed)
    await claim_slot(owner, owner.pool)
    return owner


# Making and opening


def test_a_pool_is_what_was_asked_for_and_private(path):
    pool = open_pool(path)
    assert pool.layout.size_bytes == path.stat().st_size == 16 << 20
    assert pool.layout.flags == PoolFlags.COHERENT
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (NewPool(), "say how large"),
        (NewPool(1 << 20), "smallest pool"),
        (NewPool(1 << 60), "cannot be made a pool"),
    ],
)
def test_a_pool_that_cannot_be_leaves_nothing_behind(tmp_path, wanted, words):
    with pytest.raises(PoolError, match=words):
        create_pool(tmp_path / "new", wanted, bytes(16))
    assert not (tmp_path / "new").exists()


def test_what_is_there_is_not_written_over_unless_that_is_said(path):
    before = path.read_bytes()
    with pytest.raises(PoolError, match="--force"):
        create_pool(path, NewPool(), os.urandom(16))
    assert path.read_bytes() == before
    create_pool(path, NewPool(force=True), bytes(range(16)))
    assert open_pool(path).layout.pool_id == bytes(range(16))


@pytest.mark.parametrize(
    "content", [b"", b"short", bytes(16 << 20), b"\xff" * (16 << 20)], ids=["empty", "short", "zeros", "ones"]
)
def test_what_holds_no_pool_is_refused_with_what_to_do(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(PoolError, match=r"isochrone pool create|choose another place"):
        open_pool(tmp_path / "file")
    with pytest.raises(PoolError, match="isochrone pool create"):
        open_pool(tmp_path / "nowhere")


def test_what_is_neither_file_nor_device_dax_is_refused(tmp_path):
    for path, words in ((Path("/dev/null"), "daxctl list"), (tmp_path, "cannot be opened")):
        with pytest.raises(PoolError, match=words):
            open_pool(path)


def test_the_size_and_the_alignment_of_a_device_come_from_the_system(tmp_path):
    """A recorded tree of sysfs: the device itself is not to be had here."""
    status = Path("/dev/null").stat()
    device = tmp_path / "dev" / "char" / f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    device.mkdir(parents=True)
    (tmp_path / "bus" / "dax").mkdir(parents=True)
    (device / "subsystem").symlink_to(tmp_path / "bus" / "dax")
    (device / "size").write_text("266338304\n")
    (device / "align").write_text("2097152\n")
    descriptor = os.open("/dev/null", os.O_RDONLY)
    try:
        backing = look_at(descriptor, Path("/dev/null"), tmp_path)
        assert (backing.size_bytes, backing.alignment_bytes, backing.is_device) == (266338304, 2 << 20, True)
        for name, value in (("align", "3"), ("size", "-1"), ("size", "many")):
            (device / name).write_text(value)
            with pytest.raises(PoolError):
                look_at(descriptor, Path("/dev/null"), tmp_path)
    finally:
        os.close(descriptor)


def test_a_file_that_hosts_share_is_no_pool_for_them(tmp_path, monkeypatch):
    """Each would have the file in a cache of its own, and see the other's bytes some time."""
    mounts = tmp_path / "mountinfo"
    device = tmp_path.stat().st_dev
    line = f"36 35 {os.major(device)}:{os.minor(device)} / /mnt rw,noatime master:1 - nfs4 server:/export rw\n"
    mounts.write_text("21 20 0:5 / /proc rw - proc proc rw\nbroken\n" + line)
    assert file_system_of(device, mounts) == "nfs4"
    assert file_system_of(device, tmp_path / "nowhere") == ""
    monkeypatch.setattr("mesh.fabric.pool.file_system_of", lambda _device: "nfs4")
    with pytest.raises(PoolError, match=r"lies on nfs4, .*/dev/shm"):
        create_pool(tmp_path / "pool", NewPool(16 << 20), bytes(16))
    assert not (tmp_path / "pool").exists()


def test_a_pool_that_is_cut_short_or_made_anew_is_noticed(path):
    pool = open_pool(path)
    pool.check()
    create_pool(path, NewPool(force=True), os.urandom(16))
    with pytest.raises(PoolError, match="made anew"):
        pool.check()
    os.truncate(path, PAGE_BYTES)
    with pytest.raises(PoolError, match="cut short"):
        pool.check()


def test_a_part_is_mapped_for_writing_and_no_more_of_it_than_must_be(path):
    pool = open_pool(path)
    window = pool.window(pool.layout.slab_at(3), pool.layout.slab_bytes)
    window.write(7, b"here")
    assert pool.read(pool.layout.slab_at(3) + 7, 4) == b"here"
    assert len(window.view.obj) == pool.layout.slab_bytes


# Slots


async def test_each_owner_has_a_slot_of_its_own_and_a_greater_epoch_than_those_before(path):
    one, other = await settled(path, 1), await settled(path, 1)  # both begin with the same slot
    assert one.slot != other.slot
    assert one.is_owner(other.token)
    slot, epoch = one.slot, one.head.epoch
    one.leave()
    assert not other.is_owner(Token(one.pool.layout.pool_id, slot, epoch, one.head.nonce))
    again = await settled(path, 1)
    assert (again.slot, again.head.epoch) == (slot, epoch + 1)


async def test_a_full_pool_says_so(path, autojump_clock):
    pool = open_pool(path)
    for slot in range(pool.layout.slots):
        pool.window(pool.layout.slot_at(slot), LINE_BYTES).write(0, encode_slot(SlotHead(SlotState.CLAIMED, 1, os.urandom(16))))
    with pytest.raises(FullError, match="isochrone pool show"):
        await claim_slot(owner_of(pool), pool)


async def test_who_takes_too_long_to_write_gives_the_slot_up(path):
    """It may have found the slot free before another had it, and has now spoiled that other's: nobody uses it."""
    victim = await settled(path, 2)
    slow = owner_of(open_pool(path), 3)
    times = iter([0.0, owners.WRITE_S_MAX * 1.01])
    slow.now = lambda: next(times)
    slow.head_of = lambda _slot: SlotHead()  # what it had read before
    assert not await carry_out(slow.taking(victim.slot))
    assert slow.slot == -1
    assert not victim.has_slot
    assert victim.claim(1) is None
    assert not victim.beat()


async def test_two_who_write_at_once_do_not_both_believe_it(path, autojump_clock):
    pool = open_pool(path)
    both = [owner_of(pool, n) for n in range(2)]
    taken = []

    async def take(owner):
        taken.append(await carry_out(owner.taking(5)))

    async with trio.open_nursery() as nursery:
        for owner in both:
            nursery.start_soon(take, owner)
    assert sorted(taken) == [False, True]


async def test_who_writes_a_little_later_than_another_is_waited_for(path, autojump_clock):
    """The later one had found the slot free, and was slow, but not too slow."""
    pool = open_pool(path)
    first, later = owner_of(pool, 0), owner_of(pool, 1)
    later.head_of = lambda _slot: SlotHead()
    taken = {}

    async def take(owner, after_s):
        await trio.sleep(after_s)
        taken[owner] = await carry_out(owner.taking(5))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, first, 0.0)
        nursery.start_soon(take, later, 0.9 * owners.WRITE_S_MAX)
    assert taken == {first: False, later: True}


async def test_an_owner_without_a_beat_is_found_dead_and_its_slabs_are_free_again(path, autojump_clock):
    dead, alive = await settled(path, 1), await settled(path, 2)
    free = alive.free_slabs
    run = dead.claim(10)
    assert alive.free_slabs == free - 10
    assert alive.watch() == []
    for _ in range(int(owners.DEAD_S) - 1):
        await trio.sleep(1)
        assert alive.watch() == []
    dead.beat()
    assert alive.watch() == []
    await trio.sleep(owners.DEAD_S)
    assert alive.watch() == [dead.slot]
    token = dead.token
    assert await carry_out(alive.reaping(dead.slot))
    assert not alive.is_owner(token)
    assert alive.head_of(token.slot) == SlotHead(SlotState.FREE, token.epoch + 1)
    assert alive.free_slabs == free
    assert not dead.beat(), "a process that was only stopped has lost its slot"
    dead.free(run)
    dead.leave()
    assert alive.head_of(token.slot) == SlotHead(SlotState.FREE, token.epoch + 1), "and writes nothing into it"


async def test_an_owner_that_beats_meanwhile_is_not_taken_for_dead(path, autojump_clock):
    one, other = await settled(path, 1), await settled(path, 2)
    one.watch()
    await trio.sleep(owners.DEAD_S)
    assert one.watch() == [other.slot]
    other.beat()
    assert not await carry_out(one.reaping(other.slot))
    assert other.has_slot


async def test_a_slot_that_was_left_half_written_is_cleared_as_well(path, autojump_clock):
    alive = await settled(path, 1)
    slot = (alive.slot + 1) % SLOTS_MAX
    alive.pool.window(alive.pool.layout.slot_at(slot), LINE_BYTES).write(0, b"half of it" + bytes(54))
    assert alive.head_of(slot) is None
    alive.watch()
    await trio.sleep(owners.DEAD_S)
    assert alive.watch() == [slot]
    assert await carry_out(alive.reaping(slot))
    assert alive.head_of(slot).state is SlotState.FREE


# Slabs


async def test_a_slab_has_one_owner_at_a_time(path):
    one, other = await settled(path, 1), await settled(path, 2)
    total = one.free_slabs
    runs = [one.claim(total // 2), other.claim(total // 4)]
    assert all(runs)
    spans = sorted((run.first, run.first + run.count) for run in runs)
    assert spans[0][1] <= spans[1][0]
    assert one.claim(total // 2 + 1) is None
    one.free(runs[0])
    assert other.claims_all(other.slot, runs[1].first, runs[1].count)
    assert not other.claims_all(one.slot, runs[0].first, runs[0].count)
    assert other.free_slabs == total - total // 4


async def test_what_is_held_is_not_used_again_by_anybody_until_it_is_let_go(path):
    gives, reads, third = [await settled(path, n) for n in (1, 2, 3)]
    total = third.free_slabs
    run = gives.claim(8)
    reads.hold(run.first, run.count)
    reads.hold(run.first, 1)
    gives.free(run)
    assert third.free_slabs == gives.free_slabs == total - 8
    reads.let_go(run.first, run.count)
    assert third.free_slabs == total - 1, "somebody else still looks at the first"
    reads.let_go(run.first, 1)
    assert third.free_slabs == total


async def test_who_leaves_while_it_looks_keeps_its_holds_until_it_is_taken_for_dead(path, autojump_clock):
    gives, reads = await settled(path, 1), await settled(path, 2)
    run = gives.claim(8)
    reads.hold(run.first, run.count)
    gives.free(run)
    slot = reads.slot
    reads.leave()
    assert gives.head_of(slot).state is SlotState.CLAIMED
    assert gives.free_slabs == gives.pool.layout.slabs - 8
    gives.watch()
    await trio.sleep(owners.DEAD_S)
    for dead in gives.watch():
        await carry_out(gives.reaping(dead))
    assert gives.free_slabs == gives.pool.layout.slabs


async def test_bits_that_somebody_else_has_spoiled_are_put_right_with_the_next_beat(path):
    one, other = await settled(path, 1), await settled(path, 2)
    run = one.claim(9)
    layout = one.pool.layout
    other.pool.window(layout.claims_at(one.slot), layout.bits_bytes).write(0, bytes(layout.bits_bytes))
    assert not other.claims_all(one.slot, run.first, run.count)
    assert one.beat()
    assert other.claims_all(one.slot, run.first, run.count)


@given(st.lists(st.booleans(), min_size=1, max_size=200), st.integers(1, 40), st.integers(0, 250))
def test_a_run_is_found_where_there_is_one(used, count, start):
    used = np.array(used)
    start %= len(used)
    found = find_run(used, count, start)
    fits = [at for at in range(len(used) - count + 1) if not used[at : at + count].any()]
    if found is None:
        assert fits == []
    else:
        assert found in fits
        assert found == next((at for at in fits if at >= start), fits[0])


WORKER = """
import os, random, sys, time
from pathlib import Path
import trio
from mesh.fabric.owner import Owner, claim_slot
from mesh.fabric.pool import open_pool

path, number, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

async def main():
    pool = open_pool(path)
    luck = random.Random(7)  # all begin with the same slot
    owner = Owner(pool, f"worker {number}", os.urandom, luck, trio.current_time)
    print("ready", flush=True)
    sys.stdin.readline()
    await claim_slot(owner, owner.pool)
    mark, wrong, runs = os.urandom(16), 0, 0
    luck.seed(number)
    while runs < rounds:
        run = owner.claim(luck.randint(1, 60))
        if run is None:
            continue
        runs += 1
        step = pool.layout.slab_bytes
        for at in range(0, run.count * step, step):
            run.window.view[at : at + 16] = mark
        time.sleep(0)
        wrong += any(bytes(run.window.view[at : at + 16]) != mark for at in range(0, run.count * step, step))
        owner.free(run)
    print(owner.slot, wrong)

trio.run(main)
"""


def test_processes_that_claim_at_once_never_have_one_slab_or_slot_together(path):
    """Four processes take and free slabs of a small pool as fast as they can, each writing its mark and finding it again."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(path), str(number), "400"], **pipes) for number in range(4)]
    try:
        assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 4
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        told = [list(map(int, worker.communicate(timeout=90)[0].split())) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    slots, wrong = zip(*told, strict=True)
    assert len(set(slots)) == 4
    assert wrong == (0, 0, 0, 0)


# Hostile bytes


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0, SLOTS_MAX - 1), st.integers(0, 8191), st.binary(min_size=1, max_size=200)),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 2**32),
)
def test_an_owner_lives_with_whatever_others_write_into_slots(path, writes, seed):
    """It claims less, or nothing; it never claims what lies outside, and what it raises is what it says."""

    async def main():
        owner = await settled(path, seed)
        layout = owner.pool.layout
        spoiler = open_pool(path).window(PAGE_BYTES, layout.slots * layout.slot_bytes)
        before = bytes(spoiler.view)
        try:
            for slot, offset, data in writes:
                at = slot * layout.slot_bytes + offset
                spoiler.write(at, data[: len(spoiler.view) - at])
            run = owner.claim(3)
            assert run is None or 0 <= run.first <= run.first + run.count <= layout.slabs
            owner.hold(0, 5)
            owner.watch()
            owner.claims_all(writes[0][0], 0, layout.slabs)
            owner.is_owner(Token(layout.pool_id, writes[0][0], 1, bytes(16)))
            assert 0 <= owner.free_slabs <= layout.slabs
            owner.beat()
            owner.let_go(0, 5)
            for slot in range(layout.slots):
                await carry_out(owner.reaping(slot))
            owner.leave()
        finally:
            spoiler.write(0, before)
            for slot in range(layout.slots):
                spoiler.write(slot * layout.slot_bytes, bytes(layout.slot_bytes))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_an_epoch_at_its_end_costs_the_slot_and_nothing_else(path, autojump_clock):
    pool = open_pool(path)
    for slot in range(pool.layout.slots):
        at = pool.layout.slot_at(slot)
        pool.window(at, LINE_BYTES).write(0, encode_slot(SlotHead(SlotState.FREE, 2**63 - 1, bytes(16))))
    owner = owner_of(pool)
    with pytest.raises(FullError):
        await claim_slot(owner, owner.pool)


def test_a_superblock_of_another_size_is_no_pool_of_this_file(path):
    pool = open_pool(path)
    larger = encode_superblock(pool.layout).replace((16 << 20).to_bytes(8, "little"), (32 << 20).to_bytes(8, "little"))
    with path.open("r+b") as file:
        file.write(larger)
    with pytest.raises(PoolError, match="holds no pool"):
        open_pool(path)
