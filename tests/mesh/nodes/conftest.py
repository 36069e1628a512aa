"""Starts nodes for a test and ends them with it; every test runs on each QUIC engine and on both together."""

from pathlib import Path

import pytest
import trio
from mesh_nodes import Start

from protocol.errors import LocalProtocolError
from protocol.quic import choose_engine

QUIC_ENGINES = [("qh3",), ("aioquic",), ("qh3", "aioquic")]
"""The engines that the nodes of one test take in turn."""


@pytest.fixture(params=QUIC_ENGINES, ids="-".join)
def quic_engines(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The engines of a test's nodes; a test that needs others, or the other order, names them as an indirect parameter."""
    for name in request.param:
        try:
            choose_engine(name)
        except LocalProtocolError as fault:
            pytest.skip(f"the engine {name} cannot be used here: {fault}")
    return request.param


@pytest.fixture
def start(nursery: trio.Nursery, tmp_path: Path, quic_engines: tuple[str, ...]) -> Start:
    """Starts nodes."""
    return Start(nursery, tmp_path, quic_engines)
