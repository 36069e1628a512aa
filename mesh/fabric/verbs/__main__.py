"""Builds the binding to libibverbs beforehand: `python -m mesh.fabric.verbs`."""

import sys

from mesh.fabric.verbs.binding import BindingAbsentError, load

try:
    sys.stdout.write(f"the binding to libibverbs is built: {load().__spec__.origin}\n")
except BindingAbsentError as error:
    sys.exit(f"isochrone: {error}")
