"""The commands for pools of memory: `isochrone pool create` makes one, `isochrone pool show` draws who has what in it.

They need no node: a pool is a file or a device, and says itself who uses it.
"""

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import numpy as np
from cyclopts import App, Parameter
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from mesh.fabric.pool import NewPool, Pool, PoolError, create_pool, open_pool
from mesh.nodefile import ClientError
from mesh.tables import rows_table
from protocol.errors import RemoteProtocolError
from protocol.fabric.owners import BEAT_S, union_of
from protocol.fabric.pools import (
    LINE_BYTES,
    PoolFlags,
    PoolLayout,
    SlotHead,
    SlotState,
    decode_beat,
    decode_name,
    decode_region,
    decode_slot,
)

REGIONS_SHOWN_MAX = 1024
"""Regions of one owner that are told, a count: no peer has more than 64."""

MAP_CHARACTERS = 256
"""Characters of the map of a pool: four lines of a terminal."""

UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
"""What a size may be followed by, and how many bytes that is."""

OWNER_COLUMNS = ("slot", "epoch", "name", "lives", "claimed", "regions", "holds")
COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red", "bright_cyan", "bright_magenta")

pool_app = App(name="pool", help="Pools of memory that several hosts map, of CXL or in a plain file: make one, see who uses it.")


@pool_app.command
def create(
    path: Annotated[Path, Parameter(help="A device-DAX such as /dev/dax0.0, or a file, which is made.")],
    /,
    *,
    size: Annotated[str | None, Parameter(help="Such as 1GiB; a device is taken whole where nothing is said.")] = None,
    tagged: Annotated[
        bool, Parameter(negative="", help="Readers copy what they take and check it: for pools that strangers write to.")
    ] = False,
    coherent: Annotated[
        bool | None, Parameter(help="Whether hosts see each other's writes without flushes (default: a file yes, a device no).")
    ] = None,
    force: Annotated[bool, Parameter(negative="", help="Also where there is something already; what it holds is lost.")] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print JSON for programs.")] = False,
) -> int:
    """Make a pool, for nodes that are started with --cxl-pool PATH.

    Nodes with the same pool pass tensors by it. In a plain file they are those of one host, so that anybody can try it; a file on
    /dev/shm stays in memory. On a device of CXL memory they may be on several hosts that map it.

    For example:

        isochrone pool create /dev/shm/pool --size 1GiB
        isochrone up --cxl-pool /dev/shm/pool --fabric cxl
    """
    wanted = NewPool(None if size is None else parse_size(size), coherent, tagged, force)
    try:
        layout = create_pool(path, wanted, os.urandom(16))
    except PoolError as error:
        raise ClientError(str(error)) from error
    told = _layout_json(path, layout)
    if as_json:
        print(json.dumps(told))
    else:
        console = Console(highlight=False, soft_wrap=True)
        console.print(f"{path}: a pool of {show_size(layout.size_bytes)}, {layout.slabs} slabs of {show_size(layout.slab_bytes)}")
        console.print(f"start nodes that share it with: isochrone up --cxl-pool {path}")
    return os.EX_OK


@pool_app.command
def show(
    path: Annotated[Path, Parameter(help="The pool.")],
    /,
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print JSON for programs.")] = False,
) -> int:
    """Show who has what in a pool: owners and their epochs, whether they live, regions, and the room that is left.

    It looks twice, a beat of its owners apart. Whoever does not live is cleared away by the others after a while.

    For example:

        isochrone pool show /dev/shm/pool
        isochrone pool show /dev/dax0.0 --json
    """
    try:
        pool = open_pool(path, writes=False)
    except PoolError as error:
        raise ClientError(str(error)) from error
    before = {slot: pool.read(pool.layout.slot_at(slot), 2 * LINE_BYTES) for slot in range(pool.layout.slots)}
    time.sleep(1.5 * BEAT_S)
    picture = look(pool, before)
    if as_json:
        print(json.dumps(picture.json(path)))
        return os.EX_OK
    console = Console(highlight=False)
    layout = pool.layout
    kind = "coherent" if layout.flags & PoolFlags.COHERENT else "flushed by software"
    tagged = ", tagged" if layout.flags & PoolFlags.TAGGED else ""
    console.print(f"{path}: {show_size(layout.size_bytes)}, {kind}{tagged}, id {UUID(bytes=layout.pool_id)}", soft_wrap=True)
    console.print(f"{show_size(picture.free_slabs * layout.slab_bytes)} free of {show_size(layout.slabs * layout.slab_bytes)}")
    console.print(map_of(picture))
    if picture.owners:
        console.print(rows_table("Owners", picture.rows(), OWNER_COLUMNS))
    else:
        console.print("no node uses it")
    return os.EX_OK


@dataclass(frozen=True, slots=True)
class OwnerPicture:
    """One owner, as it is found.

    Attributes:
        slot: which.
        epoch: of the slot; None where it cannot be read.
        name: what the owner calls itself.
        lives: whether its beat went on while it was looked at.
        claims: its slabs.
        holds: those of others at which it looks.
        regions: the first slab, number, epoch and length of each of its regions that is leased.
    """

    slot: int
    epoch: int | None
    name: str
    lives: bool
    claims: NDArray[np.bool_]
    holds: NDArray[np.bool_]
    regions: tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class PoolPicture:
    """A pool as it is found."""

    layout: PoolLayout
    owners: tuple[OwnerPicture, ...]

    @property
    def free_slabs(self) -> int:
        """How many slabs nobody claims or holds."""
        used = np.zeros(self.layout.slabs, np.bool_)
        for owner in self.owners:
            used |= owner.claims | owner.holds
        return int((~used).sum())

    def rows(self) -> list[dict[str, Any]]:
        """A row for each owner, for people."""
        slab_bytes = self.layout.slab_bytes
        return [
            {
                "slot": owner.slot,
                "epoch": "unreadable" if owner.epoch is None else owner.epoch,
                "name": owner.name,
                "lives": "yes" if owner.lives else "no beat",
                "claimed": show_size(int(owner.claims.sum()) * slab_bytes),
                "regions": len(owner.regions),
                "holds": show_size(int(owner.holds.sum()) * slab_bytes),
            }
            for owner in self.owners
        ]

    def json(self, path: Path) -> dict[str, object]:
        """All of it, for programs."""
        owners = [
            {
                **{key: value for key, value in asdict(owner).items() if key in ("slot", "epoch", "name", "lives")},
                "claimed_bytes": int(owner.claims.sum()) * self.layout.slab_bytes,
                "held_bytes": int(owner.holds.sum()) * self.layout.slab_bytes,
                "regions": [dict(zip(("slab", "region", "epoch", "length"), region, strict=True)) for region in owner.regions],
            }
            for owner in self.owners
        ]
        return {**_layout_json(path, self.layout), "free_bytes": self.free_slabs * self.layout.slab_bytes, "owners": owners}


def look(pool: Pool, before: Mapping[int, bytes]) -> PoolPicture:
    """What stands in a pool now.

    Args:
        pool: which.
        before: the first two lines of each slot, a beat ago.
    """
    layout, owners = pool.layout, []
    for slot in range(layout.slots):
        lines = pool.read(layout.slot_at(slot), 3 * LINE_BYTES)
        try:
            head: SlotHead | None = decode_slot(lines[:LINE_BYTES])
        except RemoteProtocolError:
            head = None
        if head is not None and head.state is SlotState.FREE:
            continue
        claims = union_of([pool.read(layout.claims_at(slot), layout.bits_bytes)], layout.slabs)
        holds = union_of([pool.read(layout.holds_at(slot), layout.bits_bytes)], layout.slabs)
        beats = [decode_beat(two[LINE_BYTES:]) for two in (before[slot], lines)]
        lives = beats[0] != beats[1] or before[slot][:LINE_BYTES] != lines[:LINE_BYTES]
        epoch = None if head is None else head.epoch
        regions = tuple(_regions(pool, slot, epoch, claims))
        owners.append(OwnerPicture(slot, epoch, decode_name(lines[2 * LINE_BYTES :]), lives, claims, holds, regions))
    return PoolPicture(layout, tuple(owners))


def _regions(pool: Pool, slot: int, epoch: int | None, claims: NDArray[np.bool_]) -> list[tuple[int, int, int, int]]:
    """The regions of an owner: of its slabs those that begin with a head of its own."""
    found: list[tuple[int, int, int, int]] = []
    for slab in map(int, np.flatnonzero(claims)):
        try:
            head = decode_region(pool.read(pool.layout.slab_at(slab)))
        except RemoteProtocolError:
            continue
        if (head.slot, head.owner_epoch) == (slot, epoch) and len(found) < REGIONS_SHOWN_MAX:
            found.append((slab, head.region, head.epoch, head.length))
    return found


def map_of(picture: PoolPicture) -> Text:
    """The slabs in order, several to a character: whose they are by colour, held ones of nobody shaded, free ones dotted."""
    slabs = picture.layout.slabs
    shown = min(slabs, MAP_CHARACTERS)
    edges = np.linspace(0, slabs, shown + 1).astype(int)
    text = Text()
    for begin, end in pairwise(edges):
        part = slice(int(begin), int(end))
        most = max(picture.owners, key=lambda owner: int(owner.claims[part].sum()), default=None)
        if most is not None and most.claims[part].any():
            text.append("█", COLOURS[most.slot % len(COLOURS)])
        else:
            text.append("▒" if any(owner.holds[part].any() for owner in picture.owners) else "·")
    return text


def parse_size(text: str) -> int:
    """A size in bytes, from what a person writes.

    Raises:
        ClientError: it is none.
    """
    found = re.fullmatch(r"(\d{1,15})\s*([KMGT]iB)?", text)
    if found is None:
        raise ClientError(f"{text!r} is no size; write bytes, or a number with KiB, MiB, GiB or TiB, such as 1GiB")
    return int(found[1]) * UNITS[found[2] or ""]


def show_size(size_bytes: int) -> str:
    """A size for people."""
    unit = max((unit for unit, step in UNITS.items() if size_bytes >= step), key=lambda unit: UNITS[unit], default="")
    amount = f"{size_bytes / UNITS[unit]:.1f}".removesuffix(".0")
    return f"{amount} {unit or 'B'}"


def _layout_json(path: Path, layout: PoolLayout) -> dict[str, object]:
    return {
        "path": str(path),
        "pool_id": str(UUID(bytes=layout.pool_id)),
        "size_bytes": layout.size_bytes,
        "slab_bytes": layout.slab_bytes,
        "slabs": layout.slabs,
        "slots": layout.slots,
        "coherent": bool(layout.flags & PoolFlags.COHERENT),
        "tagged": bool(layout.flags & PoolFlags.TAGGED),
    }
