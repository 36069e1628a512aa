"""Which engines come of what was written, and of what runs on this machine."""

from urllib.parse import urlsplit

import pytest
import trio

from mesh.engines.detect import API_KEY_VARIABLE, UnknownEngineError, choose_specs, make_engines
from mesh.engines.echo import EchoEngine
from mesh.engines.onnx import OnnxEngine
from mesh.engines.openai import OpenAIEngine
from mesh.engines.search import detect_engines


async def test_each_spec_becomes_its_engine(tmp_path):
    engines = make_engines(["onnx", " Echo", "http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000"], tmp_path)
    assert [type(engine) for engine in engines] == [OnnxEngine, EchoEngine, OpenAIEngine]
    assert engines[2].url == "http://127.0.0.1:8000"
    for engine in engines:
        await engine.aclose()


def test_none_is_no_engine(tmp_path):
    assert make_engines(["none"], tmp_path) == []


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        (["onx"], "did you mean 'onnx'"),
        (["127.0.0.1:8000"], "did you mean 'http://127.0.0.1:8000'"),
        (["http://"], "no host"),
        (["ftp://host"], "Known are onnx, echo, none"),
        (["none", "echo"], "cannot stand beside 'echo'"),
        ([""], "Known are"),
    ],
)
def test_unknown_spec_is_refused_with_advice(tmp_path, specs, said):
    with pytest.raises(UnknownEngineError, match=said.replace("(", r"\(")):
        make_engines(specs, tmp_path)


async def test_api_key_is_taken_from_the_environment(tmp_path, monkeypatch, openai_server):
    monkeypatch.setenv(API_KEY_VARIABLE, "from-environment")
    (engine,) = make_engines([openai_server.url], tmp_path)
    await engine.start()
    assert openai_server.headers[-1]["authorization"] == "Bearer from-environment"
    await engine.aclose()


async def test_running_server_is_found_and_gets_no_key(openai_server, monkeypatch):
    monkeypatch.setenv(API_KEY_VARIABLE, "secret")
    port = urlsplit(openai_server.url).port
    assert await detect_engines([1, port]) == (f"http://127.0.0.1:{port}",)
    assert "authorization" not in openai_server.headers[-1]


async def test_gateway_of_a_node_is_not_found(openai_server):
    openai_server.node_header = True
    assert await detect_engines([urlsplit(openai_server.url).port]) == ()


async def test_server_without_models_is_not_found(openai_server):
    openai_server.models = []
    assert await detect_engines([urlsplit(openai_server.url).port]) == ()


async def test_server_that_says_nothing_does_not_hold_up_the_search(nursery, openai_server):
    async def mute(stream) -> None:
        await trio.sleep_forever()

    listeners = await nursery.start(trio.serve_tcp, mute, 0)
    ports = [listeners[0].socket.getsockname()[1], urlsplit(openai_server.url).port]
    with trio.fail_after(10):
        assert await detect_engines(ports) == (f"http://127.0.0.1:{ports[1]}",)


async def test_embedded_engine_takes_the_place_of_none_found():
    assert await choose_specs([], ports=[1]) == ("onnx",)
    assert await choose_specs(["none"], ports=[1]) == ("none",)
