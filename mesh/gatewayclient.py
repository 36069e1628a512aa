"""The command line's side of the gateway: plain HTTP to the node that runs here.

Only what a person asks for at a terminal goes this way; programs use the gateway with any OpenAI client. Every failure becomes
one `ClientError` whose text says what was asked, what came back and what to do, with the exit code it deserves.
"""

import json
import ssl
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from mesh.nodefile import ClientError, NoNodeError

CONNECT_TIMEOUT_S = 5.0
"""Seconds to reach a gateway on loopback; longer means that nobody accepts."""
READ_TIMEOUT_S = 300.0
"""Seconds between two pieces of an answer; a large model may think for minutes before its first token."""
BODY_BYTES_MAX = 64 << 20
"""Bytes of a whole answer; the largest are batches of embeddings."""
EVENT_BYTES_MAX = 1 << 20
"""Bytes of one streamed event."""
_PEM_END = "-----END CERTIFICATE-----"


@dataclass(slots=True)
class Route:
    """Who answered and why, from the headers of an answer."""

    request_id: str = ""
    node: str = ""
    route: str = ""

    def read(self, headers: httpx.Headers) -> None:
        """Take the mesh's headers over."""
        self.request_id = headers.get("x-request-id", "")
        self.node = headers.get("x-mesh-node", "")
        self.route = headers.get("x-mesh-route", "")

    def as_json(self) -> dict[str, str]:
        """Return the fields for a JSON answer."""
        return {"request_id": self.request_id, "node": self.node, "route": self.route}


@dataclass(slots=True)
class GatewayClient:
    """HTTP to one gateway; a context manager that closes its connections.

    Attributes:
        url: where it is.
        key: presented to it, where it wants one.
        tls_cert: the gateway's own certificate, in PEM: nobody else is believed then, and no name is compared; without it the
            authorities that this machine trusts vouch for the name in the URL.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    tls_cert: Path | None = None
    route: Route = field(default_factory=Route)
    _http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        # trust_env off: a proxy from the environment has no business between this terminal and loopback.
        verify = True if self.tls_cert is None else pinned(self.tls_cert)
        headers = {} if self.key is None else {"authorization": f"Bearer {self.key}"}
        self._http = httpx.Client(
            base_url=self.url, headers=headers, verify=verify, timeout=timeout, trust_env=False, follow_redirects=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()

    def get(self, path: str) -> Any:
        """Return the JSON at `path`.

        Raises:
            NoNodeError: if nobody listens there.
            ClientError: if the answer is an error or no JSON.
        """
        return self._whole("GET", path, None)

    def post(self, path: str, body: object) -> Any:
        """Return the JSON answer to a JSON `body`; raises like `get`."""
        return self._whole("POST", path, body)

    def events(self, path: str, body: object = None) -> Generator[Any]:
        """Yield the JSON of each server-sent event until `[DONE]`, asked for with a JSON `body` or without.

        Raises:
            NoNodeError: if nobody listens there.
            ClientError: if the answer is an error, no JSON, or breaks off.
        """
        with self._stream("GET" if body is None else "POST", path, body) as response:
            done = False
            for data in _event_data(response):
                if data == "[DONE]":
                    done = True
                    break
                event = _json(data, path)
                if isinstance(event, dict) and "error" in event:
                    raise ClientError(f"the answer broke off: {_error_text(event)}")
                yield event
            if not done:
                raise ClientError("the answer broke off: the node closed the stream before its end; ask again")

    def _whole(self, method: str, path: str, body: object) -> Any:
        with self._stream(method, path, body) as response:
            return _json(_read(response), path)

    @contextmanager
    def _stream(self, method: str, path: str, body: object) -> Generator[httpx.Response]:
        try:
            with self._http.stream(method, path, json=body) as response:
                self.route.read(response.headers)
                if response.status_code != httpx.codes.OK:
                    raise ClientError(_failure(response.status_code, path, _read(response)))
                yield response
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise NoNodeError(
                f"no node answers at {self.url} ({error}): start one with `isochrone up`, or check --gateway"
            ) from error
        except httpx.HTTPError as error:
            raise ClientError(
                f"the connection to {self.url} failed ({error or type(error).__name__}); is the node still running?"
            ) from error
        except httpx.InvalidURL as error:
            raise NoNodeError(f"--gateway {self.url}: write a URL such as http://127.0.0.1:8421 ({error})") from error


def pinned(certificate: Path) -> ssl.SSLContext:
    """A context that believes whoever has the key of one certificate, whatever it is called.

    Raises:
        ClientError: the certificate cannot be read.
    """
    try:
        text = certificate.read_text("ascii", "replace")
        leaf = text[: text.index(_PEM_END) + len(_PEM_END)]  # those of authorities may follow, and vouch for others too
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it need not have signed itself
        context.load_verify_locations(cadata=leaf)
    except (OSError, ValueError) as error:
        raise ClientError(f"{certificate} is no certificate in PEM ({error}); is it the gateway's?") from error
    return context


def _read(response: httpx.Response) -> str:
    pieces, size = [], 0
    for piece in response.iter_bytes():
        size += len(piece)
        if size > BODY_BYTES_MAX:
            raise ClientError(f"the answer is larger than {BODY_BYTES_MAX} bytes")
        pieces.append(piece)
    return b"".join(pieces).decode("utf-8", "replace")


def _event_data(response: httpx.Response) -> Iterator[str]:
    """Yield the data of each event; comments and other fields are skipped (WHATWG HTML, section 9.2.6)."""
    lines: list[str] = []
    size = 0
    for line in response.iter_lines():
        size += len(line)
        if size > EVENT_BYTES_MAX:
            raise ClientError(f"one streamed event is larger than {EVENT_BYTES_MAX} bytes")
        if not line:
            if lines:
                yield "\n".join(lines)
            lines, size = [], 0
        elif line.startswith("data:"):
            lines.append(line[5:].removeprefix(" "))


def _json(text: str, path: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ClientError(f"{path}: the answer is not JSON; is that URL a node's gateway?") from error


def _error_text(body: object) -> str:
    match body:
        case {"error": {"message": str() as message}}:
            return message
        case {"error": str() as message} | {"message": str() as message}:
            return message
        case _:
            return json.dumps(body)[:300]


def _failure(status: int, path: str, text: str) -> str:
    try:
        said = _error_text(json.loads(text))
    except (ValueError, RecursionError):
        said = text.strip()[:300]
    return f"{said or 'no reason given'} (HTTP {status} from {path})"
