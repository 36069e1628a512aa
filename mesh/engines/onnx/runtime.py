"""ONNX Runtime as the embedded models use it: sessions with few threads that do not spin, and its errors.

The libraries are an extra, `isochrone[onnx]`; nothing here imports them before a model is loaded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mesh.engines.base import EmbeddedEngineUnavailableError, EngineError
from protocol.errors import ErrorCode

INSTALL_HINT = "install the embedded engine with: pip install 'isochrone[onnx]'"


class Session(Protocol):
    """The one call of an inference session."""

    def run(self, names: Sequence[str], feeds: dict[str, npt.NDArray[np.generic]]) -> list[npt.NDArray[np.float32]]:
        """The named outputs for the given inputs."""


def open_session(path: Path, threads: int) -> Session:
    """A session on the CPU with `threads` threads of its own.

    Raises:
        EmbeddedEngineUnavailableError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise EmbeddedEngineUnavailableError(f"onnxruntime is not installed; {INSTALL_HINT}") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only; warnings about optimisations help nobody
    # Idle threads would otherwise burn a core between requests.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session: Session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session


def run_session(
    session: Session, output: Sequence[str], feeds: dict[str, npt.NDArray[np.generic]]
) -> list[npt.NDArray[np.float32]]:
    """The outputs, with the runtime's own failures told as `ENGINE_FAILED`.

    Raises:
        EngineError: the runtime failed, for want of memory most likely.
    """
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    try:
        return session.run(output, feeds)
    except (states.Fail, states.RuntimeException, states.InvalidArgument, MemoryError) as error:
        raise EngineError(ErrorCode.ENGINE_FAILED, f"the embedded engine failed: {error}") from None
