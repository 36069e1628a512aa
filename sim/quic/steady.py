"""What the QUIC libraries draw from the operating system, made to repeat as far as it can be.

Connection ids, TLS randoms, greasing and tokens come from `os.urandom`, which is replaced while virtual time passes: their sizes
vary too, and so would the packets. Key shares and signatures are drawn inside compiled code that takes no luck from outside.
Their content never repeats; of their sizes only that of a signature varies, so one is made anew until it has the usual length.
The frames of several streams stand in a packet in an order that differs from run to run, as in a set of streams; what came
together is told in the order of the streams, and QUIC promises no other.

Source: RFC 8446 section 4.4.3 (CertificateVerify); RFC 3279 section 2.2.3 (an ECDSA signature is two integers in DER, each with a
sign byte or not).
"""

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from random import Random
from typing import Any, cast

from protocol.quic.seam import (
    Address,
    DataReceived,
    EngineConnection,
    EngineEvent,
    EngineSetup,
    QuicEngine,
    ResetReceived,
    StopReceived,
    VerifyPeer,
)

SIGNATURE_BYTES = 71
"""Length of the signatures that are used: that of half of all P-256 signatures, one integer with a sign byte and one without."""


@contextmanager
def steady_entropy(luck: Random) -> Iterator[None]:
    """Lets `os.urandom` draw from `luck`; nothing in the process may need a secret meanwhile."""
    true_urandom = os.urandom
    os.urandom = luck.randbytes
    try:
        yield
    finally:
        os.urandom = true_urandom


class SteadyKey:
    """A P-256 key whose signatures all have one length; in all else it is the key it was made of."""

    def __init__(self, key: Any) -> None:
        self._key = key

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The libraries ask what kind of key it is."""
        return type(self._key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._key, name)

    def sign(self, *arguments: Any) -> bytes:
        """Signs until the signature has the usual length: twice on average."""
        while True:
            signature = cast("bytes", self._key.sign(*arguments))
            if len(signature) == SIGNATURE_BYTES:
                return signature


class SteadyEngine:
    """A QUIC engine whose packets have the same sizes in every run of one seed."""

    def __init__(self, engine: QuicEngine) -> None:
        self.name, self.version, self.guarantees = engine.name, engine.version, engine.guarantees
        self._engine = engine

    def connect(self, setup: EngineSetup, address: Address, verify: VerifyPeer, now: float) -> EngineConnection:
        """See `QuicEngine`."""
        return _steadied(self._engine.connect(_steady(setup), address, verify, now))

    def accept(
        self, setup: EngineSetup, original_cid: bytes, verify: VerifyPeer, retry_cid: bytes | None = None
    ) -> EngineConnection:
        """See `QuicEngine`."""
        return _steadied(self._engine.accept(_steady(setup), original_cid, verify, retry_cid))


def _steady(setup: EngineSetup) -> EngineSetup:
    """What suffices for aioquic, which signs with the key it is given."""
    key = cast("Any", SteadyKey(setup.certificate.private_key))
    return replace(setup, certificate=replace(setup.certificate, private_key=key))


def _steadied(connection: EngineConnection) -> EngineConnection:
    """Makes one connection steady: the order of its events, and the key where qh3 has read it into one of its own."""
    pending: deque[EngineEvent] = deque()
    take = connection.next_event

    def next_event() -> EngineEvent | None:
        if not pending:
            came: list[EngineEvent] = []
            while (event := take()) is not None:
                came.append(event)
            for _, together in groupby(came, _is_of_stream):
                pending.extend(sorted(together, key=_stream_of))
        return pending.popleft() if pending else None

    quic = cast("Any", connection)._quic
    cast("Any", connection).next_event = next_event
    configuration = quic._configuration
    if not isinstance(configuration.private_key, SteadyKey):
        configuration.private_key = SteadyKey(configuration.private_key)
    tls = getattr(getattr(quic, "_tls", None), "tls", None)  # a server's is made later, from the configuration
    if tls is not None:
        tls.certificate_private_key = configuration.private_key
    return connection


def _is_of_stream(event: EngineEvent) -> bool:
    return isinstance(event, DataReceived | ResetReceived | StopReceived)


def _stream_of(event: EngineEvent) -> int:
    """What events of streams are sorted by; all others keep their order."""
    return event.stream_id if isinstance(event, DataReceived | ResetReceived | StopReceived) else 0
