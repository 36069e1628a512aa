"""Builds the ONNX graph of all-MiniLM-L6-v2 from its weights, with onnx and numpy alone.

The model is a BERT encoder of six layers. Its output is the mean of the token vectors that the mask keeps, scaled to length
one. Inputs `input_ids` and `attention_mask` are int64 of shape (batch, tokens); the output `embedding` is float32 of shape
(batch, hidden).

Source: Devlin et al., "BERT" (NAACL 2019), for the encoder; Reimers and Gurevych, "Sentence-BERT" (EMNLP 2019), for the pooling;
Wang et al., "MiniLM" (NeurIPS 2020), for the weights' origin.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

OPSET = 17
"""The ONNX operator set: the first one with LayerNormalization."""

IR_VERSION = 9
"""The file format's version that goes with the operator set; ONNX Runtime reads every older one."""

MASKED = -1e9
"""Added to the scores of tokens that are padding: their share after the softmax is zero in float32."""


class _Builder:
    """Collects nodes and constants, and names what each node gives."""

    def __init__(self, config: dict[str, Any], weights: dict[str, npt.NDArray[np.float32]]) -> None:
        self.hidden: int = config["hidden_size"]
        self.heads: int = config["num_attention_heads"]
        self.layers: int = config["num_hidden_layers"]
        self.epsilon: float = config["layer_norm_eps"]
        self.weights = weights
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        """A constant of the graph, stored once under its name."""
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value, dtype), name)
        return name

    def integers(self, name: str, *values: int) -> str:
        """A constant of int64 values: axes and shapes."""
        return self.constant(name, values, np.int64)

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        """A node with one output, whose name is returned."""
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def dense(self, x: str, prefix: str) -> str:
        """A linear layer."""
        product = self.op("MatMul", x, self.constant(f"{prefix}.w", self.weights[f"{prefix}.weight"].T))
        return self.op("Add", product, self.constant(f"{prefix}.b", self.weights[f"{prefix}.bias"]))

    def norm(self, x: str, prefix: str) -> str:
        """A layer normalisation."""
        scale = self.constant(f"{prefix}.g", self.weights[f"{prefix}.weight"])
        shift = self.constant(f"{prefix}.b", self.weights[f"{prefix}.bias"])
        return self.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=self.epsilon)

    def embed(self) -> str:
        """Word, position and segment vectors, added up."""
        length = self.op("Shape", "input_ids", start=1, end=2)
        table = self.constant("positions", self.weights["embeddings.position_embeddings.weight"])
        positions = self.op("Slice", table, self.integers("zero", 0), length)
        words = self.op("Gather", self.constant("words", self.weights["embeddings.word_embeddings.weight"]), "input_ids")
        segment = self.constant("segment", self.weights["embeddings.token_type_embeddings.weight"][0])
        return self.norm(self.op("Add", self.op("Add", words, positions), segment), "embeddings.LayerNorm")

    def attend(self, x: str, prefix: str, bias: str) -> str:
        """Self-attention with its residual."""
        split = self.integers("split", 0, 0, self.heads, self.hidden // self.heads)
        turns = {"query": [0, 2, 1, 3], "key": [0, 2, 3, 1], "value": [0, 2, 1, 3]}
        query, key, value = (
            self.op("Transpose", self.op("Reshape", self.dense(x, f"{prefix}.self.{name}"), split), perm=turn)
            for name, turn in turns.items()
        )
        scale = self.constant("scale", (self.hidden // self.heads) ** -0.5)
        scores = self.op("Add", self.op("Mul", self.op("MatMul", query, key), scale), bias)
        context = self.op("MatMul", self.op("Softmax", scores, axis=-1), value)
        merged = self.op("Reshape", self.op("Transpose", context, perm=[0, 2, 1, 3]), self.integers("merge", 0, 0, self.hidden))
        return self.norm(self.op("Add", self.dense(merged, f"{prefix}.output.dense"), x), f"{prefix}.output.LayerNorm")

    def feed_forward(self, x: str, prefix: str) -> str:
        """The inner layer with GELU and its residual."""
        inner = self.dense(x, f"{prefix}.intermediate.dense")
        root = self.op("Mul", inner, self.constant("half_root", 0.5**0.5))
        gate = self.op("Add", self.op("Erf", root), self.constant("one", 1.0))
        gelu = self.op("Mul", self.op("Mul", inner, self.constant("half", 0.5)), gate)
        return self.norm(self.op("Add", self.dense(gelu, f"{prefix}.output.dense"), x), f"{prefix}.output.LayerNorm")

    def pool(self, x: str, mask: str) -> None:
        """The mean over the tokens that count, scaled to length one, as the output."""
        wide = self.op("Unsqueeze", mask, self.integers("last_axis", 2))
        tokens = self.integers("token_axis", 1)
        total = self.op("ReduceSum", self.op("Mul", x, wide), tokens, keepdims=0)
        mean = self.op("Div", total, self.op("ReduceSum", wide, tokens, keepdims=0))
        self.nodes.append(helper.make_node("LpNormalization", [mean], ["embedding"], axis=-1, p=2))


def build_minilm(folder: Path) -> Any:
    """The graph of the model whose `config.json` and `model.safetensors` are in `folder`."""
    config = json.loads((folder / "config.json").read_text())
    weights = {name.removeprefix("bert."): value for name, value in load_file(folder / "model.safetensors").items()}
    builder = _Builder(config, weights)
    x = builder.embed()
    mask = builder.op("Cast", "attention_mask", to=TensorProto.FLOAT)
    dropped = builder.op("Sub", builder.constant("one", 1.0), builder.op("Unsqueeze", mask, builder.integers("head_axes", 1, 2)))
    bias = builder.op("Mul", dropped, builder.constant("masked", MASKED))
    for layer in range(builder.layers):
        prefix = f"encoder.layer.{layer}"
        x = builder.feed_forward(builder.attend(x, f"{prefix}.attention", bias), prefix)
    builder.pool(x, mask)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", builder.hidden])
    graph = helper.make_graph(builder.nodes, "minilm", inputs, [output], list(builder.constants.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model
