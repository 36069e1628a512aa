"""`isochrone map`: asks the node for what it knows, draws it, and writes one file."""

import json
import os
import webbrowser
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from cyclopts import Parameter

from mesh.config import ConfigError
from mesh.map.facts import read_facts
from mesh.nodefile import ClientError
from mesh.where import Where

SUFFIXES = (".html", ".svg")
"""Kinds of file."""


def draw_map(
    *,
    around: Annotated[
        str | None, Parameter(help="Who is in the middle: peer id, how it begins or ends, or an owner (default: this node).")
    ] = None,
    output: Annotated[Path, Parameter(help="FILE.html, which has keys and other middles, or FILE.svg.")] = Path("isochrone.html"),
    scale: Annotated[str, Parameter(help="auto, linear or log: how milliseconds become distance on the map.")] = "auto",
    geographic: Annotated[
        bool,
        Parameter(
            negative="", help="On the world, where owners say their nodes stand (latitude and longitude in their settings)."
        ),
    ] = False,
    open_it: Annotated[bool, Parameter(name="--open", negative="", help="Show the file in this machine's browser.")] = False,
    where: Where | None = None,
) -> int:
    """Draw a map of the mesh: everybody as far from the middle as the round trip takes, near those that are near to them.

    Rings are isochrones, lines of equal round-trip time. The file needs nothing else, no network and no script of others; in a
    browser it is read with the keyboard too (press ? there), by day and by night, and it prints.

    For example:

        isochrone map --open
        isochrone map --around 9kYbQh2d --output mesh.svg
        isochrone map --geographic --output world.html
    """
    where = where or Where()
    if output.suffix not in SUFFIXES:
        raise ConfigError("output", str(output), "flag --output", "give a name that ends in .html or .svg, such as map.html")
    if scale not in ("auto", "linear", "log"):
        raise ConfigError("scale", scale, "flag --scale", "choose one of auto, linear, log")
    if around in ("", ".", ".."):
        raise ConfigError("around", around, "flag --around", "name a node by its id, as `isochrone peers` shows it")
    with where.client() as client:
        answer = client.get("/mesh/map" + ("" if around is None else f"/{quote(around, safe='')}"))
    if where.as_json:
        print(json.dumps(answer))
        return os.EX_OK
    # After what was asked for is known to be right: numpy takes a while.
    from mesh.map.draw import draw
    from mesh.map.page import page
    from mesh.map.style import DRAWING, PALETTE
    from mesh.map.world import draw_world

    facts = read_facts(answer)
    alone = PALETTE + DRAWING if output.suffix == ".svg" else ""
    drawing = draw_world(facts, alone=alone) if geographic else draw(facts, logarithmic=LOGARITHMIC[scale], alone=alone)
    text = drawing.svg + "\n" if output.suffix == ".svg" else page(facts.located() if geographic else facts, drawing)
    try:
        output.write_text(text, "utf-8")
    except OSError as error:
        raise ClientError(f"cannot write {output} ({error.strerror}); choose another file with --output") from error
    print(f"{output}: {len(facts.places)} nodes")
    if open_it and not webbrowser.open(output.absolute().as_uri()):
        print(f"no browser was found here; open {output.absolute().as_uri()} in one")
    return os.EX_OK


LOGARITHMIC = {"auto": None, "linear": False, "log": True}
"""What `--scale` means."""
