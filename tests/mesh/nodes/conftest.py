"""Starts nodes for a test and ends them with it."""

from pathlib import Path

import pytest
import trio
from mesh_nodes import MeshNode, PlannedEngine, Start


@pytest.fixture
def start(nursery: trio.Nursery, tmp_path: Path) -> Start:
    """Starts a node with the given engines; those that are to know each other are given the others as `join`."""
    n_started = 0

    async def start_one(*engines: PlannedEngine, join: tuple[MeshNode, ...] = (), **named) -> MeshNode:
        nonlocal n_started
        n_started += 1
        state_dir = named.pop("state_dir", tmp_path / f"node{n_started}")
        node = MeshNode(state_dir, engines, bootstrap=[other.address for other in join], **named)
        with trio.fail_after(10):
            await nursery.start(node.run)
        return node

    return start_one
