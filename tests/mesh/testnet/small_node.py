"""A node of the test mesh in a hundred lines: tells peers of one another over UDP, measures them, and answers `/mesh/peers`.

It stands in where the runner itself is tested, and takes the same flags as `isochrone up`. `--engine echo:dies` ends it before it
is ready, `--engine echo:silent` keeps it from being ready, `--engine echo:stubborn` lets it ignore SIGTERM.
"""

import argparse
import json
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from mesh.store import Store
from protocol.identity import peer_id_text
from protocol.multiaddr import parse_multiaddr

parser = argparse.ArgumentParser()
parser.add_argument("up", choices=["up"])
parser.add_argument("--json", action="store_true", required=True)
for name in ("state-dir", "listen", "announce", "gateway"):
    parser.add_argument(f"--{name}", required=True)
parser.add_argument("--network-dir")
for name in ("engine", "bootstrap"):
    parser.add_argument(f"--{name}", action="append", default=[])
flags = parser.parse_args()

store = Store(Path(flags.state_dir))
own_id = peer_id_text(store.identity().peer_id)
listen, announce = parse_multiaddr(flags.listen), parse_multiaddr(flags.announce)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind((listen.host, listen.port))
known: dict[str, tuple[str, int]] = {own_id: (announce.host, announce.port)}
rtt_ms: dict[str, float] = {}


class Gateway(BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        rows = [{"peer_id": peer, "standing": "alive", "rtt_ms": rtt_ms.get(peer)} for peer in list(known) if peer != own_id]
        content = json.dumps({"peers": rows}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def talk() -> None:
    """Tell everybody known, five times a second, who is known and what time it is."""
    bootstrap = [parse_multiaddr(text) for text in flags.bootstrap]
    while True:
        message = json.dumps({"from": own_id, "known": known, "at": time.monotonic()}).encode()
        for target in {(address.host, address.port) for address in bootstrap} | set(known.values()) - {known[own_id]}:
            udp.sendto(message, target)
        time.sleep(0.2)


def listen_for_ever() -> None:
    while True:
        data, sender = udp.recvfrom(65536)
        message = json.loads(data)
        if "echo" in message:
            rtt_ms[message["from"]] = (time.monotonic() - message["echo"]) * 1000
        else:
            assert sender == tuple(message["known"][message["from"]]), "a peer is seen at an address it does not announce"
            known.update({peer: (host, port) for peer, (host, port) in message["known"].items() if peer != own_id})
            udp.sendto(json.dumps({"from": own_id, "echo": message["at"]}).encode(), sender)


if "echo:dies" in flags.engine:
    sys.exit("the engine is not there")
if "echo:stubborn" in flags.engine:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
gateway = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
for work in (talk, listen_for_ever):
    threading.Thread(target=work, daemon=True).start()
if "echo:silent" not in flags.engine:
    ready = {"peer_id": own_id, "addresses": [flags.announce], "gateway": f"http://127.0.0.1:{gateway.server_address[1]}"}
    print(json.dumps(ready), flush=True)
print(f"node {own_id} serves {flags.engine}", file=sys.stderr, flush=True)
gateway.serve_forever(poll_interval=0.02)
