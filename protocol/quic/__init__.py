"""QUIC between peers: the seam, the engines behind it, and the choice between them."""

import difflib

from protocol.errors import ErrorCode, LocalProtocolError
from protocol.quic.seam import QuicEngine

ENGINE_NAMES = ("qh3", "aioquic")
"""The engines by preference: qh3 is several times faster; aioquic is pure Python and the reference."""

__all__ = ["ENGINE_NAMES", "QuicEngine", "choose_engine"]


def choose_engine(name: str | None = None) -> QuicEngine:
    """Return a QUIC engine, importing its library only now.

    Args:
        name: one of `ENGINE_NAMES`, or None for the first whose library is installed in the version that is known.

    Raises:
        LocalProtocolError: UNSUPPORTED when the name is unknown, or the library is missing or of another version.
    """
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
