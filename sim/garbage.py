"""What Python's garbage collector does during a run: little, for a mesh of a thousand nodes lives as long as the run.

Source: CPython documentation, gc; a full collection walks every object, two million of them take a quarter of a second.
"""

import gc

YOUNG_MAX = 200_000
"""New container objects, a count, before the youngest generation is looked through: a few virtual seconds of a large mesh."""

OLDEST_EVERY = 1000
"""Looks at the middle generation, a count, before everything is looked through: practically never within a run."""


def collect_seldom() -> None:
    """Looks through everything now, and from now on seldom; for programs that do nothing but simulate."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_MAX, 50, OLDEST_EVERY)
