"""Which node a command asks, and how it shows the answer: options that all of them share."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from mesh.client import GatewayClient
from mesh.config import default_state_dir
from mesh.nodefile import find_node


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Where:
    """Which node to ask, and how to show the answer."""

    gateway: Annotated[str | None, Parameter(help="URL of the node's gateway; found through the state directory if absent.")] = (
        None
    )
    state_dir: Annotated[Path | None, Parameter(help="State directory of the node; the same as for `up`.")] = None
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print JSON for programs.")] = False

    def client(self) -> GatewayClient:
        """Return a client of the named node, or of the one that runs here.

        Raises:
            NoNodeError: if none runs here.
        """
        if self.gateway is not None:
            return GatewayClient(self.gateway.rstrip("/").removesuffix("/v1"))
        named = self.state_dir or (Path(os.environ["ISOCHRONE_STATE_DIR"]) if os.environ.get("ISOCHRONE_STATE_DIR") else None)
        return GatewayClient(find_node(named or default_state_dir(os.environ)).ready.gateway)

    def show(self, answer: object, view: Callable[[], Any]) -> int:
        """Print the answer as JSON, or the view of it."""
        if self.as_json:
            print(json.dumps(answer))
        else:
            Console().print(view())
        return os.EX_OK
