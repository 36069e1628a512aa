"""QUIC between peers: the seam, the engines behind it, and the choice between them."""

import difflib

from protocol.errors import ErrorCode, LocalProtocolError
from protocol.quic.guards import missing
from protocol.quic.seam import QuicEngine

ENGINE_NAMES = ("qh3", "aioquic")
"""The engines by preference: qh3 is several times faster; aioquic is pure Python and the reference."""

__all__ = ["ENGINE_NAMES", "QuicEngine", "choose_engine", "refuse_unguarded"]


def choose_engine(name: str | None = None, *, untrusted: bool = False) -> QuicEngine:
    """Return a QUIC engine, importing its library only now.

    Args:
        name: one of `ENGINE_NAMES`, or None for the first whose library is installed in the version that is known.
        untrusted: whether strangers may come, in a network that is open; the engine must hold every guard then.

    Raises:
        LocalProtocolError: UNSUPPORTED when the name is unknown, the library is missing or of another version, or the engine does
            not hold every guard though it must.
    """
    engine = _chosen(name)
    if untrusted:
        refuse_unguarded(engine)
    return engine


def refuse_unguarded(engine: QuicEngine) -> None:
    """Refuse an engine that does not hold every row of docs/transport-guards.md.

    Raises:
        LocalProtocolError: UNSUPPORTED, with what is missing and what to do.
    """
    if lacks := missing(engine.guarantees):
        rows = ", ".join(f"{guard.value} ({guard.name.lower().replace('_', ' ')})" for guard in lacks)
        others = " or ".join(f"--quic-engine {other}" for other in ENGINE_NAMES if other != engine.name)
        raise LocalProtocolError(
            ErrorCode.UNSUPPORTED,
            f"the QUIC engine {engine.name!r} {engine.version} does not hold {rows} of docs/transport-guards.md and is not used "
            f"where strangers may come: choose {others}, or a network that is not open",
        )


def _chosen(name: str | None) -> QuicEngine:
    if name is not None:
        if name not in ENGINE_NAMES:
            near = difflib.get_close_matches(name, ENGINE_NAMES, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise LocalProtocolError(
                ErrorCode.UNSUPPORTED, f"no QUIC engine is called {name!r}{hint} (known: {', '.join(ENGINE_NAMES)})"
            )
        return _load(name)
    for candidate in ENGINE_NAMES[:-1]:
        try:
            return _load(candidate)
        except LocalProtocolError:
            continue
    return _load(ENGINE_NAMES[-1])


def _load(name: str) -> QuicEngine:
    try:
        if name == "qh3":
            from protocol.quic.qh3_engine import Qh3Engine

            return Qh3Engine()
        from protocol.quic.aioquic_engine import AioquicEngine

        return AioquicEngine()
    except ImportError as fault:
        raise LocalProtocolError(
            ErrorCode.UNSUPPORTED, f"the QUIC engine {name!r} cannot be loaded ({fault}): pip install {name}"
        ) from fault
