"""An owner of a pool in this process: the waits of `protocol.fabric.owners`, and what people are told where there is no room."""

from collections.abc import Generator

import trio

from mesh.fabric.pool import Pool, PoolError, Window
from protocol.fabric import owners

Owner = owners.Owner[Window]
Run = owners.Run[Window]


class FullError(PoolError):
    """All slots of a pool have owners."""


async def claim_slot(owner: Owner, pool: Pool) -> None:
    """Become an owner of a slot that nobody has.

    Raises:
        FullError: all have an owner, or one whose death is not certain yet.
        OSError: the system refuses.
    """
    if not await carry_out(owner.claiming_slot()):
        raise FullError(
            f"all {pool.layout.slots} slots of {pool.path} have owners; slots of nodes that died are free after "
            f"{owners.DEAD_S:g} s: see isochrone pool show {pool.path}"
        )


async def carry_out(steps: Generator[float, None, bool]) -> bool:
    """Wait as long as an owner wants to wait; return what it ends with."""
    while True:
        try:
            wait_s = next(steps)
        except StopIteration as end:
            return bool(end.value)
        await trio.sleep(wait_s)
