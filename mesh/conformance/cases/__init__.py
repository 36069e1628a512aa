"""The cases, a module for a chapter or a part of one; importing this package registers them all.

Add a case: a function under `@case("ISO-...")` in the module of its chapter. Where a sentence cannot be seen from outside, an
`inside("ISO-...", "why", "tests/...::test_...")` in `inside_tests` (`inside_fabric` for chapter 11).
"""

from mesh.conformance.cases import (
    admission,
    certificates,
    comparing,
    connections,
    conventions,
    dialling,
    forwarding,
    handshake,
    identify_readers,
    identity,
    inference,
    inside_fabric,
    inside_rdma,
    inside_tests,
    membership,
    negotiation,
    probing,
    pubsub,
    records,
    sealing,
    spreading,
    strangers,
    streams,
)

__all__ = [
    "admission",
    "certificates",
    "comparing",
    "connections",
    "conventions",
    "dialling",
    "forwarding",
    "handshake",
    "identify_readers",
    "identity",
    "inference",
    "inside_fabric",
    "inside_rdma",
    "inside_tests",
    "membership",
    "negotiation",
    "probing",
    "pubsub",
    "records",
    "sealing",
    "spreading",
    "strangers",
    "streams",
]
