"""Finds the emulated GPU, which the tests of whole nodes use as well."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "nodes"))
