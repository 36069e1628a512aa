"""`isochrone simulate`: how would the mesh do with my sites, engines and load?

The function is the command; the program hooks it in beside the shell's own commands, of which it knows nothing.

Source: docs/simulate.md.
"""

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def simulate(
    file: Annotated[Path | None, Parameter(help="TOML file with sites, engines and load.")] = None,
    /,
    *,
    for_s: Annotated[float, Parameter(name="--for", help="Seconds of load, on virtual time.")] = 120.0,
    seed: Annotated[int, Parameter(help="All luck follows from it; another seed is another day.")] = 42,
    output: Annotated[Path, Parameter(help="Folder for the page with the picture.")] = Path("build/simulate"),
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print the result as JSON and no table.")] = False,
    example: Annotated[bool, Parameter(negative="", help="Print a commented file to start from, and do nothing else.")] = False,
) -> int:
    """Say how the mesh would do with your sites, engines and load.

    Whole nodes run on virtual time with your distances between them; nothing touches the network. Ctrl-C ends early and still
    shows what was seen.

    For example:

        isochrone simulate --example > my-sites.toml
        isochrone simulate my-sites.toml
        isochrone simulate my-sites.toml --for 600 --seed 7 --json
    """
    # Here and not above: these imports take longer than most commands.
    if example:
        from sim.sites_example import EXAMPLE

        print(EXAMPLE, end="")
        return os.EX_OK
    from sim.terminal import run_simulation

    return run_simulation(file, for_s=for_s, seed=seed, output=output, quiet=as_json)
