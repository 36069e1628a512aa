"""The command line: `isochrone up` runs a node, the other commands talk to the node that runs here.

Cyclopts reads the tokens; what they mean is decided in `mesh.config`, so that a flag, a variable and a line of the file obey the
same rules. Heavy parts (trio, the transport, the engines) are imported by the command that needs them. Every command returns its
exit code, and every failure a person can cause ends as one sentence on stderr.
"""

import gc
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from mesh.config import SETTINGS, ConfigError, NodeConfig, StartError, resolve
from mesh.flags import ClientFlags, GatewayFlags, PlaceFlags
from mesh.nodefile import ClientError, NoNodeError
from mesh.plain import printable

EXIT_FAILED = 1
"""Exit code: the node answered with an error, or a check of `demo` or `testnet` failed."""
EXIT_USAGE = 2
"""Exit code: a flag, a variable or a line of the configuration file cannot be used."""
EXIT_NO_NODE = 3
"""Exit code: there is no node to talk to."""
EXIT_START = 4
"""Exit code: the node cannot start from what is on disk, or cannot have its addresses."""
EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells report it."""

EPILOGUE = (
    "Exit codes: 0 done, 1 the answer is an error, 2 wrong flag or setting, 3 no node is running here, 4 the node cannot start, "
    "130 interrupted.\n\n"
    "Settings are looked for in flags, then ISOCHRONE_* variables (ISOCHRONE_STATE_DIR, ISOCHRONE_BOOTSTRAP=A,B …), then the "
    "TOML file (--config, else $XDG_CONFIG_HOME/isochrone/config.toml)."
)

app = App(
    name="isochrone",
    help="""A mesh of nodes that answers inference requests at the shortest distance.

    Start here:

        isochrone up                             # a node; prints how to join it
        isochrone invite                         # an invitation for another machine, which there
        isochrone join TOKEN                     # makes its node a member
        isochrone ask "Why is the sky blue?"     # the nearest able peer answers
        isochrone explain REQUEST_ID             # why that peer
        OPENAI_BASE_URL=http://127.0.0.1:8421/v1 # for any OpenAI client
    """,
    help_format="plaintext",
    help_epilogue=EPILOGUE,
    version_flags=["--version"],
    version=lambda: version_text(),  # noqa: PLW0108  # it is defined further down
    backend="trio",
)


@app.command
def up(
    *,
    state_dir: Annotated[
        Path | None, Parameter(help="Where the key and the known peers are kept (default: XDG state directory).")
    ] = None,
    listen: Annotated[
        list[str] | None, Parameter(help="MULTIADDR to bind, repeatable; port 0 lets the system choose.", negative="")
    ] = None,
    announce: Annotated[
        list[str] | None,
        Parameter(help="MULTIADDR told to others instead of the bound ones, repeatable: behind NAT, say.", negative=""),
    ] = None,
    bootstrap: Annotated[list[str] | None, Parameter(help="MULTIADDR of a node of the mesh, repeatable.", negative="")] = None,
    door: GatewayFlags | None = None,
    client: ClientFlags | None = None,
    engine: Annotated[
        list[str] | None,
        Parameter(
            help="onnx, echo, none, or the URL of an OpenAI-compatible server; repeatable (default: look for one, else onnx).",
            negative="",
        ),
    ] = None,
    open_network: Annotated[
        bool | None,
        Parameter(name="--open", negative="", help="Belong to an open network: anybody may join, without certificates."),
    ] = None,
    network: Annotated[
        str | None, Parameter(help="Id of the open network (with --open); only nodes of one network talk to each other.")
    ] = None,
    network_dir: Annotated[
        Path | None, Parameter(help="Where your private network is kept (default: XDG data directory).")
    ] = None,
    quic_engine: Annotated[str | None, Parameter(help="auto, aioquic or qh3.")] = None,
    grace_s: Annotated[float | None, Parameter(help="Seconds for streams to finish after Ctrl-C.")] = None,
    relay: Annotated[
        bool | None,
        Parameter(help="Pass sealed requests of others on to peers they cannot reach (default: yes, in an open network no)."),
    ] = None,
    log_level: Annotated[str | None, Parameter(help="debug, info, warning or error.")] = None,
    place: PlaceFlags | None = None,
    config: Annotated[Path | None, Parameter(help="TOML file with the same settings.")] = None,
    as_json: Annotated[
        bool,
        Parameter(name="--json", negative="", help="When ready, print one JSON line: peer_id, addresses, gateway …"),
    ] = False,
) -> int:
    """Run a node until Ctrl-C.

    The first start makes the node's key, and your private network where there is none yet: all nodes that you start on this
    machine belong to it, and others join by invitation (isochrone invite, isochrone join). When the node is ready it prints its
    peer id, how others join, and the gateway's URL.
    Ctrl-C drains: new work is refused, streams finish, peers are told; a second Ctrl-C stops at once.

    For example:

        isochrone up
        isochrone up --engine http://127.0.0.1:8000
        isochrone up --bootstrap /ip4/192.0.2.7/udp/4001/quic-v1/p2p/12D3KooW…
        isochrone up --gateway 0.0.0.0:8421 --gateway-hosts mesh.example --gateway-key-file keys
            --gateway-tls-cert mesh.crt --gateway-tls-key mesh.key
        isochrone up --state-dir /tmp/a --gateway 127.0.0.1:0 --json
    """
    given = locals() | asdict(door or GatewayFlags()) | asdict(client or ClientFlags()) | asdict(place or PlaceFlags())
    given["open"] = open_network
    settings = read_config({name: given[name] for name in SETTINGS}, config)
    gc.disable()  # imports leave nothing to collect and are most of a start; the service turns it on again
    from mesh.service import run_node
    from mesh.up import run_up

    return run_up(settings, run_node, as_json=as_json)


def read_config(flags: dict[str, object], config_file: Path | None) -> NodeConfig:
    """Resolve flags with the environment and the file; raises ConfigError."""
    return resolve(flags, os.environ, config_file)


# By name: none of them is imported before it is asked for, or help is, so that a node starts without what only they need.
for _name in ("status", "peers", "models", "explain", "ask", "embed"):
    app.command(f"mesh.askcommands:{_name}", name=_name)
for _name in ("distance", "near", "coordinates"):
    app.command(f"mesh.distancecommands:{_name}", name=_name)
app.command("mesh.map.command:draw_map", name="map")
app.command("mesh.hardwarecommands:hardware", name="hardware")
app.command("mesh.wirecommands:trace", name="trace")
app.command("mesh.receiptcommands:receipt_app", name="receipt")
app.command("mesh.wirecommands:spec", name="spec")
app.command("mesh.poolcommands:pool_app", name="pool")
for _name in ("network", "invite", "join"):
    app.command(f"mesh.admission.commands:{_name}", name=_name)


@app.command(name="testnet")
def start_testnet(
    *,
    preset: Annotated[str | None, Parameter(help="metro (1-8 ms round trips) or continents (10-250 ms).")] = None,
    topology: Annotated[Path | None, Parameter(help="TOML file with nodes and distances instead of a preset.")] = None,
    matrix: Annotated[
        Path | None, Parameter(help=".npz or .csv of round trips in ms instead, as `python -m sim coordinates` reads them.")
    ] = None,
    nodes: Annotated[int | None, Parameter(help="How many nodes of the preset, or of the matrix (12).")] = None,
    seed: Annotated[int | None, Parameter(help="Which nodes of the matrix (1): as the simulator draws them.")] = None,
    engine: Annotated[list[str] | None, Parameter(help="Engine of every node, as for `up`; repeatable.", negative="")] = None,
    directory: Annotated[Path | None, Parameter(help="Where states and logs go (default: a temporary directory).")] = None,
    for_s: Annotated[float | None, Parameter(name="--for", help="Stop after so many seconds (default: at Ctrl-C).")] = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print the result as JSON and no table.")] = False,
) -> int:
    """Run a whole mesh on this machine, with chosen distances between its nodes.

    Every node is a real process; the packets between them pass a link emulator that delays, jitters and loses them. No root is
    needed.

    For example:

        isochrone testnet
        isochrone testnet --preset continents --nodes 8
        isochrone testnet --topology my-sites.toml --for 60 --json
        isochrone testnet --matrix rtt.csv --nodes 12 --seed 2
    """
    from mesh.testnet.command import Wish, choose_topology, run_testnet

    chosen = choose_topology(Wish(preset, topology, matrix, nodes, seed, engine))
    return run_testnet(chosen, directory=directory, for_s=for_s, as_json=as_json)


@app.command
def demo(
    *,
    out: Annotated[Path, Parameter(help="Where the picture and the table go.")] = Path("build/demo"),
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print the result as JSON.")] = False,
) -> int:
    """Show it all: five nodes, real inference, a killed node, a picture of who answered.

    For example:

        isochrone demo
    """
    import trio

    if find_spec("openai") is None:
        raise StartError("the demo asks through OpenAI's client: install it with pip install 'isochrone[demo]'")
    from mesh.demo import run_demo

    return trio.run(partial(run_demo, out, as_json=as_json))


@app.command
def conformance(
    address: Annotated[str | None, Parameter(help="MULTIADDR of the node to try, with or without its peer id.")] = None,
    /,
    *,
    only: Annotated[
        list[str] | None, Parameter(help="Sentence ids or how they begin, such as ISO-GOS; repeatable.", negative="")
    ] = None,
    network_dir: Annotated[
        Path | None, Parameter(help="Where the key of the node's private network lies, to try it as members do.")
    ] = None,
    slow: Annotated[bool, Parameter(negative="", help="Also wait for the long timers: two minutes more.")] = False,
    everything: Annotated[
        bool, Parameter(name="--all", negative="", help="Also name the sentences that cannot be seen from outside.")
    ] = False,
    list_only: Annotated[bool, Parameter(name="--list", negative="", help="Show the sentences and what tries them.")] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print one line of JSON for programs.")] = False,
) -> int:
    """Try a node at any address on the specification, sentence by sentence.

    The suite connects as many strangers would, sends what is right and what is wrong, and looks at what comes back. It belongs at
    test nodes: it floods, and it tells the node's mesh records of peers that exist for a minute. Exit code 1 means that a
    sentence is not kept. A node of a private network lets strangers nowhere: without the network's key only that is tried.

    For example:

        isochrone conformance /ip4/127.0.0.1/udp/4001/quic-v1
        isochrone conformance --only ISO-GOS --only ISO-REC /ip4/192.0.2.7/udp/4001/quic-v1/p2p/12D3KooW…
        isochrone conformance --network-dir ~/.local/share/isochrone/network /ip4/127.0.0.1/udp/4001/quic-v1
        isochrone conformance --list
    """
    from mesh.conformance.command import list_sentences, run_conformance

    prefixes = tuple(only or ())
    if list_only:
        return list_sentences(prefixes, as_text=not as_json)
    return run_conformance(address, only=prefixes, slow=slow, everything=everything, as_text=not as_json, network_dir=network_dir)


@app.command
def version(*, as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print JSON for programs.")] = False) -> int:
    """Show the versions of the program and of what it stands on."""
    names = ("isochrone", "trio", "aioquic", "qh3", "onnxruntime")
    versions = {name: installed(name) for name in names} | {"python": platform.python_version()}
    if as_json:
        print(json.dumps(versions))
    else:
        print("\n".join(f"{name} {number or 'not installed'}" for name, number in versions.items()))
    return os.EX_OK


def installed(name: str) -> str | None:
    """Return the installed version of a distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def version_text() -> str:
    """Return the line for `--version`."""
    return f"isochrone {installed('isochrone') or 'from a source tree'}"


def run(tokens: Sequence[str]) -> int:
    """Run one command line and return its exit code; failures become one sentence on stderr."""
    if not tokens or tokens[0] in app.help_flags:
        for name in app:
            app[name]  # imports it: the overview says what each command does
    if not tokens:
        app.help_print([])
        return os.EX_OK
    try:
        result = app(tokens, exit_on_error=False, result_action="return_value")
    except CycloptsError:
        return EXIT_USAGE  # Cyclopts has printed what was wrong
    except NoNodeError as error:
        return _fail(str(error), EXIT_NO_NODE)
    except ClientError as error:
        return _fail(str(error), EXIT_FAILED)
    except ConfigError as error:
        return _fail(str(error), EXIT_USAGE)
    except StartError as error:
        return _fail(str(error), EXIT_START)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`isochrone peers | head`); point stdout away so that the interpreter's exit stays
        # quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    return result if isinstance(result, int) else os.EX_OK


def _fail(text: str, code: int) -> int:
    print("isochrone: " + printable(text, keep="\n\t"), file=sys.stderr)
    return code
