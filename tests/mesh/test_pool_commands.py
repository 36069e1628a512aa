"""`isochrone pool create` and `isochrone pool show`, as they are typed."""

import json
import os
import random

import pytest
import trio

from mesh.cli import run
from mesh.fabric.owner import Owner, claim_slot
from mesh.fabric.pool import open_pool
from mesh.poolcommands import look, map_of, parse_size, show_size
from protocol.fabric.pools import LINE_BYTES, RegionHead, encode_region


@pytest.fixture
def quick(monkeypatch):
    """Two looks at once."""
    monkeypatch.setattr("mesh.poolcommands.BEAT_S", 0.01)


def test_a_pool_is_made_and_shown(tmp_path, capsys, quick):
    path = str(tmp_path / "pool")
    assert run(["pool", "create", path, "--size", "16MiB"]) == 0
    told = capsys.readouterr().out
    assert "a pool of 16 MiB" in told
    assert f"isochrone up --cxl-pool {path}" in told
    assert run(["pool", "show", path]) == 0
    assert "no node uses it" in capsys.readouterr().out
    assert run(["pool", "create", path, "--size", "16MiB"]) == 1
    assert "--force" in capsys.readouterr().err
    assert run(["pool", "create", path, "--force", "--tagged", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["tagged"], made["coherent"], made["size_bytes"]) == (True, True, 16 << 20)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["show", "{}/nowhere"], "isochrone pool create"),
        (["create", "{}/new"], "--size 1GiB"),
        (["create", "{}/new", "--size", "big"], "such as 1GiB"),
        (["create", "{}/new", "--size", "1MiB"], "smallest pool"),
        (["create", "{}/no/folder", "--size", "1GiB"], "choose another place"),
        (["show", "/dev/null"], "daxctl list"),
    ],
)
def test_what_cannot_be_says_what_to_do(tmp_path, capsys, command, words):
    assert run(["pool", *(part.format(tmp_path) for part in command)]) == 1
    told = capsys.readouterr().err
    assert words in told
    assert len(told.splitlines()) == 1


async def test_owners_and_regions_are_shown_and_who_does_not_live(tmp_path, capsys, quick):
    path = tmp_path / "pool"
    run(["pool", "create", str(path), "--size", "16MiB"])
    capsys.readouterr()
    pool = open_pool(path)
    one, other = (
        Owner(pool, name, os.urandom, random.Random(seed), trio.current_time) for seed, name in enumerate(("one", "two"))
    )
    await claim_slot(one, pool)
    await claim_slot(other, pool)
    claimed = one.claim(8)
    claimed.window.write(0, encode_region(RegionHead(one.slot, one.head.epoch, 5, 9, 1000)))
    other.hold(claimed.first, 2)
    before = {slot: pool.read(pool.layout.slot_at(slot), 2 * LINE_BYTES) for slot in range(pool.layout.slots)}
    one.beat()
    picture = look(pool, before)
    told = {owner["name"]: owner for owner in picture.json(path)["owners"]}
    assert told["one"] == {
        "slot": one.slot, "epoch": 1, "name": "one", "lives": True, "claimed_bytes": 8 << 16, "held_bytes": 0,
        "regions": [{"slab": claimed.first, "region": 5, "epoch": 9, "length": 1000}],
    }  # fmt: skip
    assert (told["two"]["lives"], told["two"]["held_bytes"], told["two"]["regions"]) == (False, 2 << 16, [])
    assert picture.free_slabs == pool.layout.slabs - 8
    assert map_of(picture).plain.count("█") >= 8
    assert run(["pool", "show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "no beat" in shown
    assert "█" in shown


@pytest.mark.parametrize(("text", "size"), [("1GiB", 1 << 30), ("64 MiB", 64 << 20), ("123", 123), ("2TiB", 2 << 40)])
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text) == size
    assert parse_size(show_size(size).removesuffix(" B")) == size
