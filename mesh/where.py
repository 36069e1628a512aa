"""Which node a command asks, and how it shows the answer: options that all of them share."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from mesh.config import default_state_dir
from mesh.gatewayclient import GatewayClient
from mesh.keyfile import KeyFileError, read_keys
from mesh.nodefile import ClientError, find_node
from mesh.plain import printable


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Where:
    """Which node to ask, and how to show the answer."""

    gateway: Annotated[str | None, Parameter(help="URL of the node's gateway; found through the state directory if absent.")] = (
        None
    )
    state_dir: Annotated[Path | None, Parameter(help="State directory of the node; the same as for `up`.")] = None
    gateway_key_file: Annotated[
        Path | None, Parameter(help="File with the key for --gateway; a node that runs here says itself where its keys are.")
    ] = None
    gateway_tls_cert: Annotated[
        Path | None, Parameter(help="The gateway's certificate in PEM, where no authority vouches for it.")
    ] = None
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print JSON for programs.")] = False

    def client(self) -> GatewayClient:
        """Return a client of the named node, or of the one that runs here.

        Raises:
            NoNodeError: if none runs here.
            ClientError: if its key or its certificate cannot be read.
        """
        key_file = self.gateway_key_file or _from_environment("ISOCHRONE_GATEWAY_KEY_FILE")
        tls_cert = self.gateway_tls_cert or _from_environment("ISOCHRONE_GATEWAY_TLS_CERT")
        url = self.gateway
        if url is None:
            node = find_node(self.state_dir or _from_environment("ISOCHRONE_STATE_DIR") or default_state_dir(os.environ))
            url, key_file, tls_cert = node.ready.gateway, node.key_file, node.tls_cert
        return GatewayClient(url.rstrip("/").removesuffix("/v1"), _first_key(key_file), tls_cert)

    def show(self, answer: object, view: Callable[[], Any], said: Sequence[str] = ()) -> int:
        """Print the answer as JSON, or the view of it where there is one, and lines that a person may copy from."""
        if self.as_json:
            print(json.dumps(answer))
        else:
            shown = view()
            console = Console()
            if shown is not None:
                console.print(shown)
            for line in said:
                console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
        return os.EX_OK


def _from_environment(variable: str) -> Path | None:
    return Path(os.environ[variable]).expanduser() if os.environ.get(variable) else None


def _first_key(path: Path | None) -> str | None:
    """The first key of a file.

    Raises:
        ClientError: there is none that can be read.
    """
    if path is None:
        return None
    try:
        return read_keys(path)[0][1]
    except (KeyFileError, FileNotFoundError) as error:
        raise ClientError(f"no key for the gateway: {error}") from error
