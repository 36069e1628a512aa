"""What a user would put between OpenAI's clients and an engine instead: the LiteLLM proxy and vllm-router, as processes.

`scripts/bench_proxies.sh` installs them. Each is started as its documentation says, for one engine, without a key, on loopback.
"""

import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

FOLDER = Path(os.environ.get("BENCH_PROXIES", Path(__file__).parents[1] / ".venv-proxies")).absolute()
"""Where they are installed."""

START_S_MAX = 90.0
"""Longest start in seconds, on a busy machine; LiteLLM imports for ten."""

LITELLM, ROUTER = "LiteLLM proxy", "vllm-router"
NAMES = {LITELLM: "litellm", ROUTER: "vllm-router"}
"""The distribution of each."""


def lacking(name: str) -> str | None:
    """Why a proxy cannot be started, or None."""
    if not (FOLDER / ".ready").exists():
        return f"{name} is left out: it is not installed (scripts/bench_proxies.sh installs it beside the project)"
    return None


def version_of(name: str) -> str:
    """The version that is installed."""
    code = f"from importlib.metadata import version; print(version({NAMES[name]!r}))"
    done = subprocess.run([_folder(name) / "python", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@contextmanager
def running(name: str, engine: str, model: str) -> Iterator[str]:
    """Runs a proxy in front of an engine, and gives its URL once it answers for the model.

    Raises:
        RuntimeError: it does not; the text is the end of what it says.
    """
    with tempfile.TemporaryDirectory(prefix="isochrone-bench-") as folder:
        port = _free_port()
        command, url = _command(name, engine, model, port, Path(folder)), f"http://127.0.0.1:{port}"
        environment = {
            **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or it asks for prices on the network
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # nobody else reaches it, and ours asks for no key
        }
        log = Path(folder) / "log"
        with log.open("w") as said:
            process = subprocess.Popen(command, stdout=said, stderr=said, env=environment, cwd=folder)
        try:
            if not _answers(url, model, process):
                raise RuntimeError(f"{name} did not start: {log.read_text()[-1000:]}")
            yield url
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _command(name: str, engine: str, model: str, port: int, folder: Path) -> list[str]:
    if name == ROUTER:
        return [
            str(_folder(name) / "vllm-router"), "--host", "127.0.0.1", "--port", str(port), "--worker-urls", engine,
            "--policy", "round_robin", "--log-level", "error", "--prometheus-port", str(_free_port()),
        ]  # fmt: skip
    settings = {"model": f"openai/{model}", "api_base": f"{engine}/v1", "api_key": "none"}
    config = folder / "config.yaml"
    config.write_text(json.dumps({"model_list": [{"model_name": model, "litellm_params": settings}]}))  # JSON is YAML
    program = str(_folder(name) / "litellm")
    return [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]


def _answers(url: str, model: str, process: subprocess.Popen[bytes]) -> bool:
    until = time.monotonic() + START_S_MAX
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.post(f"{url}/v1/chat/completions", json=body, trust_env=False, timeout=10).status_code == 200:
                return True
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    return False


def _folder(name: str) -> Path:
    return FOLDER / NAMES[name] / "bin"


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])
