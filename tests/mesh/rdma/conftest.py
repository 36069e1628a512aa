"""Finds the emulated GPU and trees of buses, which other tests use as well."""

import sys
from pathlib import Path

for folder in ("nodes", "buses"):
    sys.path.insert(0, str(Path(__file__).parent.parent / folder))
