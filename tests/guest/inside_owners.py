"""Runs in a guest: waits until so many owners are in a pool.

usage: inside_owners.py DEVICE COUNT
"""

import sys
import time
from pathlib import Path

from mesh.fabric.pool import open_pool
from protocol.fabric.pools import LINE_BYTES, SlotState, decode_slot

pool, count = open_pool(Path(sys.argv[1]), writes=False), int(sys.argv[2])


def owners() -> int:
    heads = (decode_slot(pool.read(pool.layout.slot_at(slot), LINE_BYTES)) for slot in range(pool.layout.slots))
    return sum(head.state is not SlotState.FREE for head in heads)


while owners() != count:  # the host ends it where that never comes
    time.sleep(1.0)
