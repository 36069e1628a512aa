"""The parts of the OpenAI engine that touch no network."""

import pytest

from mesh.engines.base import EngineError
from mesh.engines.openai_chunks import ChunkReader, error_of_status, retry_after_s
from mesh.engines.openai_discovery import ReportedLoad, features_by_name, read_metrics, read_models, read_ollama_show
from mesh.engines.sse import SseError, SseReader
from protocol.errors import ErrorCode
from protocol.inference import Feature, JsonDelta, TextDelta

STREAM = b"\xef\xbb\xbfdata: one\r\n\r\n: comment\nid: 7\ndata:two\ndata: lines\n\nevent: x\n\ndata: three\r\rdata\n\ndata: cut"
EVENTS = [b"one", b"two\nlines", b"three", b""]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
def test_events_are_the_same_however_the_bytes_are_cut(size):
    reader = SseReader()
    chunks = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert [data for chunk in chunks for data in reader.feed(chunk)] == EVENTS


def test_line_and_event_have_a_limit():
    reader = SseReader(event_bytes_max=10)
    assert list(reader.feed(b"data:12345\n\n")) == [b"12345"]
    with pytest.raises(SseError, match="a line is over 10"):
        list(reader.feed(b"data:123456\n\n"))
    with pytest.raises(SseError, match="an event is over 10"):
        list(SseReader(event_bytes_max=10).feed(b"data:12345\n" * 3))


def test_features_are_told_or_guessed():
    answer = {
        "data": [{"id": "a"}, {"id": "nomic-embed-text"}, {"id": "b"}, {"id": ""}, {"id": "x" * 300}],
        "models": [{"model": "a", "capabilities": ["embedding"]}, {"name": "b", "capabilities": ["completion", "embedding"]}],
    }
    told = {offer.model: offer.features for offer in read_models(answer, 10)}
    everything = {Feature.CHAT, Feature.COMPLETIONS, Feature.EMBEDDINGS}
    assert told == {"a": {Feature.EMBEDDINGS}, "nomic-embed-text": {Feature.EMBEDDINGS}, "b": everything}
    assert len(read_models(answer, 2)) == 2


@pytest.mark.parametrize("name", ["BAAI/bge-m3", "intfloat/e5-large", "all-minilm", "text-embedding-3-small", "Alibaba/gte-base"])
def test_names_of_embedding_models_are_known(name):
    assert features_by_name(name) == {Feature.EMBEDDINGS}


@pytest.mark.parametrize("name", ["meta-llama/Llama-3-8B", "gpt-4o", "qwen3:8b", "gemma-e2b", "codebge5"])
def test_names_of_other_models_mean_text(name):
    assert features_by_name(name) == {Feature.CHAT, Feature.COMPLETIONS}


def test_ollama_adds_what_it_knows():
    (offer,) = read_models({"data": [{"id": "x"}]}, 1)
    answer = {
        "capabilities": ["completion", "tools"],
        "details": {"quantization_level": "Q4_K_M"},
        "model_info": {"general.architecture": "llama", "llama.context_length": 131072},
    }
    shown = read_ollama_show(offer, answer)
    assert (shown.precision, shown.context_length) == ("q4_k_m", 131072)
    assert read_ollama_show(offer, {"capabilities": 5, "details": [], "model_info": "x"}) == offer


def test_metrics_of_each_engine_are_read():
    text = """# HELP vllm:num_requests_running x
vllm:num_requests_running{engine="0",model_name="a/b"} 3.0
vllm:num_requests_running{engine="1",model_name="a/b"} 1.0
vllm:num_requests_waiting{engine="0",model_name="a/b"} 2.0 1700000000
sglang:num_running_reqs{model_name="c"} 1
sglang:num_queue_reqs{model_name="c"} 4
llamacpp:requests_processing 1
llamacpp:requests_deferred 6
llamacpp:requests_deferred NaN
llamacpp:requests_processing nonsense
"""
    assert read_metrics(text) == {"": ReportedLoad(1, 6), "a/b": ReportedLoad(4, 2), "c": ReportedLoad(1, 4)}


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b"{}",
        b'{"choices": [1]}',
        b'{"choices": [{"index": -1}]}',
        b'{"choices": [{"index": 128}]}',
        b'{"choices": [{"index": 0, "delta": 5}]}',
        b'{"choices": [{"index": 0, "finish_reason": 5, "delta": {}}]}',
        b"[" * 100_000,
    ],
)
def test_rubbish_in_a_chunk_is_the_engines_fault(data):
    with pytest.raises(EngineError) as caught:
        ChunkReader(Feature.CHAT).read(data)
    assert caught.value.code is ErrorCode.ENGINE_FAILED


def test_more_than_text_is_handed_on_as_it_came():
    reader = ChunkReader(Feature.CHAT)
    assert reader.read(b'{"choices": [{"index": 1, "delta": {"content": "x", "refusal": null}}]}') == [TextDelta("x", 1)]
    (delta,) = reader.read(
        b'{"choices": [{"index": 0, "delta": {"content": "x"}, "logprobs": {"content": []}, "finish_reason": "stop"}]}'
    )
    assert isinstance(delta, JsonDelta)
    assert b'"finish_reason":null' in delta.payload
    assert isinstance(reader.read(b'{"choices": [{"delta": {"reasoning_content": "hm"}}]}')[0], JsonDelta)
    with pytest.raises(EngineError, match="before it was finished"):
        reader.finish(done=False)
    assert reader.finish(done=True).finish_reasons == ("stop", "stop")


def test_advice_to_wait_is_bounded_and_nonsense_is_none():
    assert retry_after_s({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert retry_after_s({"retry-after": "1e9"}) == 120
    for nonsense in ("", "nan", "-3", "Wed, 21 Oct 2015 07:28:00 GMT"):
        assert retry_after_s({"retry-after": nonsense}) == 0


@pytest.mark.parametrize(
    "body",
    [b'{"error": {"message": "words"}}', b'{"error": "words"}', b'{"detail": "words"}', b'{"message": "words"}', b'"words"'],
)
def test_servers_words_are_found_in_every_shape(body):
    assert error_of_status(400, {}, body).message == "words"
    assert error_of_status(418, {}, b"\xff").message == "the engine answered with status 418"
