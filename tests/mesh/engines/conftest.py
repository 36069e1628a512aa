"""Starts the server and the engine in front of it for a test."""

from collections.abc import AsyncIterator

import pytest
from engine_server import OpenAIServer

from mesh.engines.openai import OpenAIConfig, OpenAIEngine


@pytest.fixture
async def openai_server(nursery) -> OpenAIServer:
    server = OpenAIServer()
    await server.serve(nursery)
    return server


@pytest.fixture
async def openai_engine(openai_server) -> AsyncIterator[OpenAIEngine]:
    limits = OpenAIConfig(api_key="secret", first_output_s_max=0.5, idle_s_max=0.5, answer_bytes_max=50_000)
    engine = OpenAIEngine(openai_server.url + "/v1/", limits)
    await engine.start()
    yield engine
    await engine.aclose()
