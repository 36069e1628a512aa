#!/usr/bin/env python3
"""Runs a whole mesh on this machine: the same program as `isochrone testnet`, straight from a source tree."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mesh.cli import run

if __name__ == "__main__":
    sys.exit(run(["testnet", *sys.argv[1:]]))
