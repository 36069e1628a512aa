"""Runs in a guest: writes a pattern into a device-DAX, or tells the digest of what is there.

usage: inside_dax.py write|read DEVICE OFFSET LENGTH SEED
"""

import hashlib
import json
import mmap
import os
import random
import sys

what, device, offset, length, seed = sys.argv[1:]
start, end = int(offset), int(offset) + int(length)
opened = os.open(device, os.O_RDWR)
with mmap.mmap(opened, end, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
    if what == "write":
        mapped[start:end] = random.Random(seed).randbytes(int(length))
    print(json.dumps({"sha256": hashlib.sha256(mapped[start:end]).hexdigest()}))
