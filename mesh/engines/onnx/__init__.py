"""The embedded engine: ONNX Runtime on the CPU, with a sentence-embedding model and a small text model."""

from mesh.engines.onnx.engine import OnnxConfig, OnnxEngine

__all__ = ["OnnxConfig", "OnnxEngine"]
