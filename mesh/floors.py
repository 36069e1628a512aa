"""Keeps which records of others are too old to be taken, from one run of a node to the next.

What the last run left is given to the table before the first record comes. From then on it is put on disk from time to time where
it has changed, beside everything else, since a disk may take its time.

Spec: docs/spec/03-records.md, section "Peer table" (ISO-REC-031).
"""

from functools import partial

import trio

from mesh.machine import Machine
from mesh.store import Store
from mesh.telemetry import Telemetry
from protocol.table import Floor, PeerTable

FLOORS_INTERVAL_S = 10.0
"""How often sequence numbers of others are kept on disk, in seconds: what a node that is killed may take again is no older."""


class FloorKeeper:
    """The floors of one node's table, on disk."""

    def __init__(self, table: PeerTable, store: Store, machine: Machine, telemetry: Telemetry) -> None:
        """Gives the table what the last run knew."""
        self._table = table
        self._store = store
        self._machine = machine
        self._telemetry = telemetry
        self._lock = trio.Lock()
        self._kept: list[Floor] = []
        table.restore(store.load_floors(machine.wall()), machine.wall())

    async def run(self) -> None:
        """Keeps them from time to time, until cancelled."""
        while True:
            await trio.sleep(FLOORS_INTERVAL_S)
            await self.keep()

    async def keep(self) -> None:
        """Keeps them now, where they have changed."""
        async with self._lock:
            floors = self._table.floors()
            if floors == self._kept:
                return
            fault = await self._machine.beside(partial(self._store.save_floors, floors))
            if fault is None:
                self._kept = floors
            else:
                self._telemetry.log.warning("old records may be taken again after a restart", reason=str(fault))
