"""Starts a gateway for a test and ends it with it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from io import StringIO

import httpx
import pytest
import trio
from gateway_node import LocalDispatcher, ModelEngine, Running, Start

from mesh.gateway import GatewayConfig
from mesh.gateway.server import Gateway
from mesh.telemetry import Telemetry, make_logger


@pytest.fixture
async def start(nursery: trio.Nursery) -> Start:
    """Starts a gateway with the given changes to its configuration."""

    async def start_one(**changes: object) -> Running:
        log = StringIO()
        telemetry = Telemetry(make_logger("json", "info", log))
        engine = ModelEngine()
        config = replace(GatewayConfig(port=0), **changes)  # type: ignore[arg-type]
        dispatcher = LocalDispatcher(engine)
        gateway = Gateway(config, dispatcher, telemetry)
        url = await nursery.start(gateway.serve)
        return Running(gateway, engine, telemetry, url, log, dispatcher)

    return start_one


@pytest.fixture
async def running(start: Start) -> Running:
    return await start()


@pytest.fixture
async def http(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=running.url, timeout=20) as client:
        yield client
