#!/usr/bin/env python3
"""Trains the small byte-level text model and writes it as one ONNX step graph.

A GRU reads bytes and predicts the next one. The corpus is a stream of documents (title line, paragraph lines), each
preceded by the token END, which is also what the model writes when a document is over. Training runs over `STREAMS` places of
the stream at once and carries the state from one window to the next (truncated back-propagation through time).

The graph is built here from the weights with onnx alone. It takes `tokens` (count,) and `state` (layers, 1, hidden) and gives
`logits` (vocabulary,) for what follows the last token and `state_out`; so a prompt is one run and every further byte is one run
of constant cost. Weights are stored as float16 and cast when a session is created.

    scripts/train_text_model.sh          # makes its own environment and calls this
    scripts/train_text_model.py scripts/data/jargon-corpus.txt.gz mesh/engines/data/tiny-text.onnx

Source: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder" (EMNLP 2014), for the GRU; the variant is
cuDNN's (reset after the matrix product), ONNX `linear_before_reset=1`.
"""

import argparse
import gzip
import hashlib
import math
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

END = 256  # the one token that is no byte: before and after every document
VOCABULARY = 257  # 256 bytes and END
EMBEDDING = 96  # a byte needs few dimensions
HIDDEN = 512  # with one layer 1.09 million parameters, 2.2 MB as float16
LAYERS = 1  # a second layer of the same total size learns more slowly per second of processor time
DROPOUT = 0.1  # 1.3 MB of text is read many times over
STREAMS = 24  # windows per step; more is hardly faster on a processor and gives fewer steps
WINDOW = 100  # bytes of back-propagation: a sentence
EPOCHS = 16  # the held-out text gains nothing more; forty minutes on one shared core with bfloat16 instructions
LEARNING_RATE = 3e-3  # the usual peak for Adam on small recurrent networks
WARM_UP_STEPS = 100  # until Adam's second moments mean something
GRADIENT_NORM_MAX = 1.0  # recurrent gradients explode now and then
HELD_OUT_ONE_IN = 20  # one twentieth of the corpus, at its end, is only measured
SEED = 447  # any fixed number


class Model(nn.Module):
    """Embedding, GRU layers, output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, EMBEDDING)
        self.recurrent = nn.GRU(EMBEDDING, HIDDEN, LAYERS)
        self.dropout = nn.Dropout(DROPOUT)
        self.output = nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, tokens: torch.Tensor, state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (time, streams, vocabulary) and the new state for tokens (time, streams)."""
        hidden, state = self.recurrent(self.dropout(self.embedding(tokens)), state)
        return self.output(self.dropout(hidden)), state


def read_corpus(path: Path) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Training tokens, held-out tokens and the digest of the corpus."""
    raw = gzip.decompress(path.read_bytes())
    documents = raw.split(b"\n\n")
    kept = len(documents) - len(documents) // HELD_OUT_ONE_IN

    def tokens(part: list[bytes]) -> torch.Tensor:
        flat = [token for document in part for token in (END, *document)]
        return torch.tensor([*flat, END], dtype=torch.long)

    return tokens(documents[:kept]), tokens(documents[kept:]), hashlib.sha256(raw).hexdigest()


def bits_per_byte(model: Model, tokens: torch.Tensor) -> float:
    """Mean surprise over the tokens, in bits."""
    model.eval()
    total, count, state = 0.0, 0, None
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, 4096):
            part = tokens[start : start + 4097].unsqueeze(1)
            logits, state = model(part[:-1], state)
            total += nn.functional.cross_entropy(logits.flatten(0, 1), part[1:].flatten(), reduction="sum").item()
            count += len(part) - 1
    model.train()
    return total / count / math.log(2)


def train(model: Model, tokens: torch.Tensor, held_out: torch.Tensor, epochs: int, checkpoint: Path) -> None:
    """Read the corpus `epochs` times, from a new offset each time, with a one-cycle learning rate."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    length = (len(tokens) - 1) // STREAMS
    windows = length // WINDOW
    steps = epochs * windows

    def rate(step: int) -> float:
        return min((step + 1) / WARM_UP_STEPS, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    began_s = time.monotonic()
    for epoch in range(epochs):
        rolled = torch.roll(tokens, int(torch.randint(len(tokens), (1,))))
        inputs = rolled[: length * STREAMS].view(STREAMS, length).T.contiguous()
        targets = rolled[1 : length * STREAMS + 1].view(STREAMS, length).T.contiguous()
        state, total = None, 0.0
        for window in range(windows):
            part = slice(window * WINDOW, (window + 1) * WINDOW)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits, state = model(inputs[part], state)
            loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), targets[part].flatten())
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM_MAX)
            optimiser.step()
            schedule.step()
            state = state.detach()
            total += loss.item()
        print(
            f"epoch {epoch + 1}/{epochs}: {total / windows / math.log(2):.3f} bits/byte trained, "
            f"{bits_per_byte(model, held_out):.3f} held out, {time.monotonic() - began_s:.0f} s",
            flush=True,
        )
        torch.save(model.state_dict(), checkpoint)


def onnx_order(matrix: np.ndarray) -> np.ndarray:
    """A GRU matrix or bias from torch's gate order (reset, update, new) to ONNX's (update, reset, hidden)."""
    reset, update, new = np.split(matrix, 3)
    return np.concatenate([update, reset, new])


def build_graph(weights: dict[str, np.ndarray], notes: dict[str, str]) -> onnx.ModelProto:
    """The step graph; its inputs and outputs are described at the top of this file."""
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def half(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(value.astype(np.float16), f"{name}_f16"))
        nodes.append(helper.make_node("Cast", [f"{name}_f16"], [name], to=TensorProto.FLOAT))
        return name

    def index(name: str, *values: int) -> str:
        constants.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    axis = index("axis", 1)
    nodes.append(helper.make_node("Gather", [half("embedding", weights["embedding.weight"]), "tokens"], ["embedded"]))
    nodes.append(helper.make_node("Unsqueeze", ["embedded", axis], ["x0"]))
    nodes.append(helper.make_node("Split", ["state"], [f"h{i}" for i in range(LAYERS)], axis=0, num_outputs=LAYERS))
    for i in range(LAYERS):
        w = half(f"w{i}", onnx_order(weights[f"recurrent.weight_ih_l{i}"])[None])
        r = half(f"r{i}", onnx_order(weights[f"recurrent.weight_hh_l{i}"])[None])
        biases = [onnx_order(weights[f"recurrent.bias_{kind}_l{i}"]) for kind in ("ih", "hh")]
        b = half(f"b{i}", np.concatenate(biases)[None])
        gru = helper.make_node(
            "GRU", [f"x{i}", w, r, b, "", f"h{i}"], [f"y{i}", f"s{i}"], hidden_size=HIDDEN, linear_before_reset=1
        )
        nodes.append(gru)
        nodes.append(helper.make_node("Squeeze", [f"y{i}", axis], [f"x{i + 1}"]))
    nodes.pop()  # only the last layer's final state is needed, not its whole output
    nodes.append(helper.make_node("Concat", [f"s{i}" for i in range(LAYERS)], ["state_out"], axis=0))
    nodes.append(helper.make_node("Reshape", [f"s{LAYERS - 1}", index("row", 1, HIDDEN)], ["last"]))
    nodes.append(
        helper.make_node(
            "Gemm", ["last", half("wo", weights["output.weight"]), half("bo", weights["output.bias"])], ["row_logits"], transB=1
        )
    )
    nodes.append(helper.make_node("Reshape", ["row_logits", index("flat", VOCABULARY)], ["logits"]))
    state = [LAYERS, 1, HIDDEN]
    graph = helper.make_graph(
        nodes,
        "tiny-text",
        [
            helper.make_tensor_value_info("tokens", TensorProto.INT64, ["count"]),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, state),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [VOCABULARY]),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, state),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, producer_name="isochrone")
    helper.set_model_props(model, notes)
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    """Train (unless weights are given), measure, export."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path, default=Path("build/tiny-text.pt"), help="written after every epoch")
    parser.add_argument("--export-only", action="store_true", help="export the checkpoint as it is")
    options = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(options.threads)
    options.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    tokens, held_out, digest = read_corpus(options.corpus)
    model = Model()
    parameters = sum(weight.numel() for weight in model.parameters())
    print(f"{len(tokens)} tokens to learn, {len(held_out)} held out, {parameters} parameters", flush=True)
    if options.export_only:
        model.load_state_dict(torch.load(options.checkpoint, weights_only=True))
    else:
        train(model, tokens, held_out, options.epochs, options.checkpoint)
    held_out_bits = bits_per_byte(model, held_out)
    notes = {
        "corpus": "The Jargon File 4.4.7 (public domain)",
        "corpus_sha256": digest,
        "parameters": str(parameters),
        "bits_per_byte_held_out": f"{held_out_bits:.3f}",
        "end_token": str(END),
    }
    onnx.save(build_graph({name: weight.numpy() for name, weight in model.state_dict().items()}, notes), options.target)
    print(f"{options.target}: {options.target.stat().st_size} bytes, {held_out_bits:.3f} bits per byte held out")


if __name__ == "__main__":
    main()
