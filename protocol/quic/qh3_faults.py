"""What qh3 may raise over a peer's bytes, a panic of its compiled half among it: each ends one connection and nothing else.

Source: qh3 2.1.0; PyO3, "PanicException".
Spec: docs/spec/02-transport.md, section "Engines".
"""
# pyright: basic

from qh3.quic.connection import QuicConnectionError
from qh3.quic.tls_bridge import QuicTlsBridgeError

from protocol.quic.qh3_tls import tls

_FAULTS = (
    QuicConnectionError,
    QuicTlsBridgeError,
    tls.Alert,
    ValueError,
    RuntimeError,
    AssertionError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
)
"""What the library may raise over a peer's bytes; each ends that connection and nothing else."""

PANIC = ("pyo3_runtime", "PanicException")
"""Module and name of what a panic of compiled code becomes: a BaseException, of a class that cannot be imported."""


def is_panic(fault: BaseException) -> bool:
    """Whether compiled code gave up in the middle of a call."""
    return any((kind.__module__, kind.__name__) == PANIC for kind in type(fault).__mro__)


def is_contained(fault: BaseException) -> bool:
    """Whether `fault` ends a connection; anything else, such as the interrupt of a person, is not for this module."""
    return isinstance(fault, _FAULTS) or is_panic(fault)
