"""What the gateway may use: where it listens, and the bound of everything a client can make it hold.

Every limit is a field, so that a test can stand at the bound. The defaults suit one owner's machine.

Source: docs/gateway.md, section "Limits".
"""

import ssl
from dataclasses import dataclass

from mesh.keyfile import KeyRing

KIB = 1024
"""Bytes in a kibibyte."""

MIB = 1024 * KIB
"""Bytes in a mebibyte."""


class GatewayAddressError(ValueError):
    """The gateway cannot listen where it was told to."""


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Address and limits of the gateway.

    Attributes:
        host: an IP address or "localhost"; anything but a loopback address needs `keys` and `tls`, or `insecure_remote`.
        port: TCP port; 0 lets the system choose, and `serve` reports the choice.
        keys: who has one of these may call; None asks nobody for a key.
        tls: serves HTTPS with this context; None serves HTTP.
        insecure_remote: the owner's explicit word that others than this machine may call, without a key or without TLS.
        allowed_hosts: names accepted in `Host` and `Origin` besides those of the loopback and the bound address.
        header_bytes_max: request line and headers together.
        body_bytes_max: one request body.
        bodies_bytes_max: all request bodies held at one time.
        drain_bytes_max: how much of a refused body is read and thrown away, so that the client gets to see the answer.
        connections_max: open connections; further ones wait in the kernel's queue.
        json_depth_max: nesting of a request body.
        choices_max: choices in one answer (`n` times the number of prompts).
        inputs_max: texts in one embeddings request, as at OpenAI.
        containers_max: arrays and objects in one request body; a long conversation with tools has some thousand.
        values_max: values in one request body; 2048 inputs of 512 tokens each have a million.
        key_requests_per_s: requests taken with one key, in the long run.
        key_requests_burst: how many may come at once.
        answer_bytes_max: one whole answer before it is rendered; a streamed answer is not held and has no such limit.
        idle_timeout_s: from accepting a connection, or from the last answer, to the end of the next request's headers. Longer
            than the 5 s after which httpx drops an idle connection, so that the client is the one who closes.
        body_timeout_s: from the headers to the end of the body.
        write_timeout_s: for a client to take `mesh.gateway.server.WRITE_BYTES`; then its connection is cut.
        deadline_default_s: for a request that names none.
        deadline_min_s: a shorter wish is raised to this.
        deadline_max_s: a longer wish is cut to this; 600 s is the patience of the official client.
        deadline_slack_s: how long after its deadline a silent dispatcher is given up.
        grace_s: for open answers at the end.
    """

    host: str = "127.0.0.1"
    port: int = 8421
    keys: KeyRing | None = None
    tls: ssl.SSLContext | None = None
    insecure_remote: bool = False
    allowed_hosts: tuple[str, ...] = ()
    header_bytes_max: int = 16 * KIB
    body_bytes_max: int = 8 * MIB
    bodies_bytes_max: int = 128 * MIB
    drain_bytes_max: int = 64 * MIB
    connections_max: int = 256
    json_depth_max: int = 64
    choices_max: int = 128
    inputs_max: int = 2048
    containers_max: int = 16_384
    values_max: int = 1_048_576
    key_requests_per_s: float = 100.0
    key_requests_burst: int = 200
    answer_bytes_max: int = 16 * MIB
    idle_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    write_timeout_s: float = 30.0
    deadline_default_s: float = 120.0
    deadline_min_s: float = 0.05
    deadline_max_s: float = 600.0
    deadline_slack_s: float = 1.0
    grace_s: float = 10.0
