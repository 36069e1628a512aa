"""The engines a node fronts: embedded ONNX models, any OpenAI-compatible server, and an echo for measurements."""
