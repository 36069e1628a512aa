"""`isochrone up`: run one node in the foreground until a signal says stop.

The first SIGINT or SIGTERM asks the node to drain; the second one ends it at once. `node.json` stands in the state directory
from ready until the stop begins, so that the other commands find the gateway.
"""

import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio
from rich.console import Console

from mesh.config import NodeConfig, Ready, StartError
from mesh.memory import keep_freed_memory
from mesh.nodefile import remove_node_file, write_node_file

EXIT_SIGNAL_BASE = 128
"""A process ended by a signal is reported as 128 plus its number (POSIX shells)."""


RunNode = Callable[[NodeConfig, Callable[[Ready], None], trio.Event], Awaitable[None]]
"""What runs a node: calls back once when it is ready, and returns after the event was set and the node has drained."""


def run_up(config: NodeConfig, run_node: RunNode, *, as_json: bool) -> int:
    """Run a node and return the program's exit code: 0 after a drain, 128 + signal when the second signal cut it short.

    Args:
        config: what the node is told.
        run_node: `mesh.service.run_node`.
        as_json: print one JSON line when ready, and nothing else on stdout.

    Raises:
        StartError: if the node cannot start.
    """
    keep_freed_memory()
    try:
        return trio.run(_up, config, run_node, as_json)
    except BaseExceptionGroup as errors:
        # Not `except*`: before Python 3.11.4 it wraps what is raised inside it in one more group.
        refusals, others = errors.split(StartError)
        if refusals is None or others is not None:
            raise
        reason: BaseException = refusals
        while isinstance(reason, BaseExceptionGroup):
            reason = reason.exceptions[0]
        raise reason from None


async def _up(config: NodeConfig, run_node: RunNode, as_json: bool) -> int:
    shutdown = trio.Event()
    forced_by = 0
    is_ready = False

    def _ready(value: Ready) -> None:
        nonlocal is_ready
        fault = write_node_file(config.state_dir, value, config.gateway_key_file, config.gateway_tls_cert)
        if fault is not None:
            print(f"isochrone: {fault}; name the gateway with --gateway {value.gateway}", file=sys.stderr)
        if not is_ready:  # a node that enters another network while it runs is ready again, and the same
            announce_ready(value, as_json=as_json, console=Console(), key_file=config.gateway_key_file, is_open=config.is_open)
        is_ready = True

    async with trio.open_nursery() as nursery:

        async def obey() -> None:
            nonlocal forced_by
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                nursery.start_soon(serve)
                async for number in signals:
                    if shutdown.is_set():
                        forced_by = number
                        nursery.cancel_scope.cancel()
                    elif not as_json:
                        print("isochrone: draining; once more to stop now", file=sys.stderr)
                    shutdown.set()

        async def serve() -> None:
            try:
                await run_node(config, _ready, shutdown)
            finally:
                # Before ready the directory may be another node's, and so may the file.
                if is_ready:
                    remove_node_file(config.state_dir)
            nursery.cancel_scope.cancel()

        nursery.start_soon(obey)
    return EXIT_SIGNAL_BASE + forced_by if forced_by else os.EX_OK


def announce_ready(ready: Ready, *, as_json: bool, console: Console, key_file: Path | None = None, is_open: bool = True) -> None:
    """Print how to use the node: one JSON line, or the same for people, who are told where the keys of its gateway are."""
    if as_json:
        told: dict[str, object] = {"peer_id": ready.peer_id, "addresses": list(ready.addresses), "gateway": ready.gateway}
        if ready.client_socket:
            told["client_socket"] = ready.client_socket
        print(json.dumps(told), file=console.file, flush=True)
        return
    lines = [f"This node is  {ready.peer_id}"]
    if not is_open:
        lines += ["Other machines join with an invitation", "  isochrone invite"]
    if ready.addresses:
        lines += [
            "Others join with" if is_open else "Your other nodes on this machine find it with",
            f"  isochrone up --bootstrap {ready.addresses[0]}",
        ]
        lines += [f"              or {address}" for address in ready.addresses[1:]]
    lines += [
        f"The gateway is  {ready.gateway}  (OPENAI_BASE_URL={ready.gateway}/v1)",
        *([] if key_file is None else [f"Its keys are in {key_file}  (OPENAI_API_KEY is the word behind a name)"]),
        "Try it",
        f"  curl {ready.gateway}/v1/models" if key_file is None else "  isochrone models",
        "Ctrl-C stops it.",
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
