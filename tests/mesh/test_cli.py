"""The command line, called in-process; where a node is needed, a small real HTTP server answers in its place."""

import base64
import json
import os
import signal
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mesh import cli
from mesh.config import Ready
from mesh.nodefile import NODE_FILE, NoNodeError, find_node, remove_node_file, write_node_file
from mesh.up import announce_ready
from protocol.quic.aioquic_engine import AioquicEngine
from protocol.quic.guards import Guard

COMMANDS = (
    "up",
    "status",
    "peers",
    "models",
    "ask",
    "embed",
    "explain",
    "distance",
    "near",
    "coordinates",
    "map",
    "trace",
    "spec",
    "testnet",
    "demo",
    "version",
    "invite",
    "join",
)
PEER = {"peer_id": "12D3KooWA", "standing": "alive", "rtt_s": 0.0125, "models": ["m"], "unknown": [1]}
ANSWERS: dict[str, object] = {
    "/mesh/status": {"peer_id": "12D3KooWA", "uptime_s": 61.0, "load": {"queue_s": 0.25, "draining": False}},
    "/mesh/peers": {"peers": [PEER]},
    "/mesh/models": {"models": [{"id": "tiny", "features": ["chat"]}, {"id": "mini", "features": ["embeddings"]}]},
    "/mesh/protocols": {"spec": "/x/spec", "protocols": [{"protocol": "/a/1.0.0", "chapter": "04-gossip.md", "what": "news"}]},
    "/mesh/explain/abc123": {
        "request_id": "abc123",
        "model": "tiny",
        "predicted_s": 0.02,
        "candidates": [
            {"peer_id": "12D3KooWA", "qualified": True, "reason": "", "rtt_s": 0.01, "predicted_s": 0.02, "outcome": "answered"}
        ],
    },
}
TRACED = [
    {"t_s": 0.0, "what": "connected", "sent": True, "remote": "/ip4/192.0.2.7/udp/4001/quic-v1"},
    {
        "t_s": 0.25, "what": "frame", "sent": False, "stream": 1, "protocol": "/isochrone/gossip/3.0.0", "bytes": 12,
        "frame": {"type": "digest", "count": 1},
    },
    {"t_s": 0.5, "what": "ended", "sent": False, "stream": 1, "protocol": "/isochrone/gossip/3.0.0"},
]  # fmt: skip
TEXT = ["Once ", "upon\x1b[2J", " a time"]
VECTOR = [0.25, -0.5, 1.0]


class Gateway(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cut_stream = False
    answers = ANSWERS
    received: list[dict]
    asked: list[str]

    def log_message(self, *args: object) -> None:
        pass

    def send(self, status: int, content: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.send_header("x-request-id", "abc123")
        self.send_header("x-mesh-node", "12D3KooWA")
        self.send_header("x-mesh-route", "rtt=10.0ms")
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        if self.path.startswith("/mesh/trace/peer1234?"):
            self.asked.append(self.path)
            events = "".join(f"data: {json.dumps(event)}\n\n" for event in TRACED)
            self.send(200, f": hello\n\n{events}data: [DONE]\n\n".encode(), "text/event-stream")
        elif self.path in self.answers:
            self.send(200, json.dumps(self.answers[self.path]).encode())
        else:
            self.send(404, json.dumps({"error": {"message": "no such request", "code": "not_found"}}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.received.append(body)
        if body["model"] == "absent":
            self.send(404, json.dumps({"error": {"message": "model absent is not offered", "code": "model_not_found"}}).encode())
        elif self.path == "/v1/embeddings":
            packed = base64.b64encode(struct.pack("<3f", *VECTOR)).decode()
            self.send(200, json.dumps({"data": [{"embedding": packed}]}).encode())
        else:
            events = [": hello\n\n"]
            events += [f"data: {json.dumps({'choices': [{'delta': {'content': piece}}]})}\n\n" for piece in TEXT]
            if self.cut_stream:
                events.append('data: {"error": {"message": "the engine died"}}\n\n')
            else:
                events.append('data: {"choices": []}\n\ndata: [DONE]\n\n')
            self.send(200, "".join(events).encode(), "text/event-stream")


@contextmanager
def serving(handler: type[Gateway]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def gateway() -> Iterator[tuple[str, type[Gateway]]]:
    handler = type("FreshGateway", (Gateway,), {"received": [], "asked": []})
    with serving(handler) as url:
        yield url, handler


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("ISOCHRONE_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)
    assert "isochrone join TOKEN" in text
    assert "Exit codes" in text
    assert "ISOCHRONE_" in text


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 0
    assert "isochrone up" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself_and_has_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--json" in text
    assert f"isochrone {command}" in text


def test_up_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["up", "--help"])
    text = capsys.readouterr().out
    for name in cli.SETTINGS:
        assert f"--{name.replace('_', '-')}" in text, name


@pytest.mark.parametrize(
    ("tokens", "code", "said"),
    [
        (["upp"], cli.EXIT_USAGE, "up"),
        (["up", "--listn", "x"], cli.EXIT_USAGE, "--listen"),
        (["up", "--listen", "here"], cli.EXIT_USAGE, "/ip4/192.0.2.7/udp/4001/quic-v1"),
        (["up", "--gateway", "0.0.0.0:80"], cli.EXIT_USAGE, "--gateway-insecure-remote"),
        (["up", "--config", "/nonexistent/c.toml"], cli.EXIT_USAGE, "no such file"),
        (["status"], cli.EXIT_NO_NODE, "start one with `isochrone up`"),
        (["status", "--gateway", "http://127.0.0.1:1"], cli.EXIT_NO_NODE, "no node answers at http://127.0.0.1:1"),
        (["ask"], cli.EXIT_USAGE, "PROMPT"),
        (["explain", "../../x"], cli.EXIT_FAILED, "x-request-id"),
        (["near", "--within", "10"], cli.EXIT_USAGE, "10ms"),
        (["coordinates", "--csv", "--json"], cli.EXIT_USAGE, "give one of the two"),
        (["map", "--output", "map.png"], cli.EXIT_USAGE, "ends in .html or .svg"),
        (["map", "--scale", "square"], cli.EXIT_USAGE, "auto, linear, log"),
        (["up", "--latitude", "48.1"], cli.EXIT_USAGE, "give longitude too"),
        (["up", "--latitude", "91", "--longitude", "0"], cli.EXIT_USAGE, "from -90 to 90"),
        (["distance", ""], cli.EXIT_USAGE, "isochrone peers"),
        (["distance"], cli.EXIT_USAGE, "ONE"),
    ],
)
def test_failure_is_one_message_with_its_exit_code(
    tokens: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(tokens) == code
    output = capsys.readouterr()
    assert said in output.err + output.out
    assert "Traceback" not in output.err


def test_environment_mistake_reaches_the_user(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ISOCHRONE_ENGINES", "echo")
    assert cli.run(["up"]) == cli.EXIT_USAGE
    assert 'did you mean "ISOCHRONE_ENGINE"' in capsys.readouterr().err


def test_version_is_text_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trio"]
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("isochrone ")


@pytest.mark.parametrize(("command", "path"), [("status", "/mesh/status"), ("peers", "/mesh/peers"), ("models", "/mesh/models")])
def test_admin_command_passes_the_answer_on_as_json(command: str, path: str, gateway, capsys: pytest.CaptureFixture[str]) -> None:
    url, _ = gateway
    assert cli.run([command, "--gateway", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ANSWERS[path]


def test_tables_show_distances_in_milliseconds(gateway, capsys: pytest.CaptureFixture[str]) -> None:
    url, _ = gateway
    assert cli.run(["peers", "--gateway", f"{url}/v1"]) == 0
    assert "12.50" in capsys.readouterr().out
    assert cli.run(["status", "--gateway", url]) == 0
    text = capsys.readouterr().out
    assert "61 s" in text
    assert "250.00 ms" in text


ADDRESS = "/ip4/192.0.2.7/udp/4001/quic-v1/p2p/12D3KooWA"
HOME = {"name": "home", "standing": "member", "is_issuer": True}


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"network": "my-mesh"}, f"isochrone up --open --network my-mesh --bootstrap {ADDRESS}"),
        ({"membership": HOME}, "isochrone invite --state-dir '/tmp/my node'"),
        ({"membership": HOME | {"is_issuer": False}}, "UDP port can be reached"),
        ({"membership": HOME | {"turned_away": "12D3KooWB: revoked"}}, "isochrone join --state-dir '/tmp/my node' TOKEN"),
        ({"membership": HOME | {"standing": "expired", "why": "it ended"}}, "no member of network 'home' now: it ended"),
        ({"membership": HOME | {"revoked": ["12D3KooWB: machine\x1b[2J sold"]}}, "Put out: 12D3KooWB: machine"),
    ],
    ids=["open", "first", "joined", "turned away", "ended", "put out"],
)
def test_where_there_are_no_peers_it_is_said_what_to_do(status, said, gateway, capsys: pytest.CaptureFixture[str]) -> None:
    url, handler = gateway
    handler.answers = {"/mesh/peers": {"peers": []}, "/mesh/status": {"addresses": [ADDRESS], **status}}
    assert cli.run(["peers", "--gateway", url, "--state-dir", "/tmp/my node"]) == 0
    text = capsys.readouterr().out
    assert said in text
    assert "\x1b" not in text
    assert cli.run(["peers", "--gateway", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"peers": []}


def test_a_node_that_was_turned_away_says_so_beside_the_peers_it_knew(gateway, capsys: pytest.CaptureFixture[str]) -> None:
    url, handler = gateway
    handler.answers = ANSWERS | {"/mesh/status": {"membership": HOME | {"turned_away": "12D3KooWB: revoked"}}}
    assert cli.run(["peers", "--gateway", url]) == 0
    text = capsys.readouterr().out
    assert "12.50" in text
    assert "turned away by 12D3KooWB: revoked" in text
    assert "isochrone join TOKEN" in text


def test_where_there_are_no_models_it_is_said_what_to_do(gateway, capsys: pytest.CaptureFixture[str]) -> None:
    url, handler = gateway
    handler.answers = {"/mesh/models": {"models": []}}
    assert cli.run(["models", "--gateway", url]) == 0
    assert "isochrone up --engine http" in capsys.readouterr().out


class Unguarded(AioquicEngine):
    name = "sieve"
    version = "0.1"
    guarantees = frozenset(Guard) - {Guard.CREDIT, Guard.FALSE_ACKS}


def test_an_open_node_is_not_started_on_an_engine_that_lacks_a_guard(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("protocol.quic._load", lambda _name: Unguarded())
    start = ["up", "--state-dir", str(tmp_path / "s"), "--engine", "none", "--gateway", "127.0.0.1:0", "--quic-engine", "aioquic"]
    start += ["--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--log-level", "error"]

    def signal_ready(*_told: object, **_named: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("mesh.up.announce_ready", signal_ready)
    assert cli.run([*start, "--open"]) == cli.EXIT_START
    error = capsys.readouterr().err
    assert error.startswith("isochrone: the QUIC engine 'sieve' 0.1 does not hold F4 (credit), F5 (false acks)")
    assert "a network that is not open" in error
    assert error.count("\n") == 1
    assert cli.run(start) == 0, "among members it is used"


def test_explain_shows_candidates(gateway, capsys: pytest.CaptureFixture[str]) -> None:
    url, _ = gateway
    assert cli.run(["explain", "abc123", "--gateway", url]) == 0
    text = capsys.readouterr().out
    assert "answered" in text
    assert "20.00" in text
    assert cli.run(["explain", "fff", "--gateway", url]) == cli.EXIT_FAILED
    assert "no such request" in capsys.readouterr().err


def test_ask_streams_text_without_control_characters_and_names_the_node(gateway, capsys: pytest.CaptureFixture[str]) -> None:
    url, handler = gateway
    assert cli.run(["ask", "tell me", "--gateway", url]) == 0
    output = capsys.readouterr()
    assert output.out == "Once upon[2J a time\n"
    assert "isochrone explain abc123" in output.err
    assert handler.received[0]["model"] == "tiny"
    assert handler.received[0]["messages"] == [{"role": "user", "content": "tell me"}]


def test_ask_json_keeps_the_exact_text(gateway, capsys: pytest.CaptureFixture[str]) -> None:
    url, _ = gateway
    assert cli.run(["ask", "tell me", "--gateway", url, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == {"model": "tiny", "text": "".join(TEXT), "request_id": "abc123", "node": "12D3KooWA", "route": "rtt=10.0ms"}


def test_ask_for_an_unknown_model_says_what_the_gateway_said(gateway, capsys: pytest.CaptureFixture[str]) -> None:
    url, _ = gateway
    assert cli.run(["ask", "x", "--model", "absent", "--gateway", url]) == cli.EXIT_FAILED
    assert "model absent is not offered (HTTP 404" in capsys.readouterr().err


def test_answer_that_breaks_off_is_a_failure(gateway, capsys: pytest.CaptureFixture[str]) -> None:
    url, handler = gateway
    handler.cut_stream = True
    assert cli.run(["ask", "x", "--gateway", url]) == cli.EXIT_FAILED
    assert "broke off: the engine died" in capsys.readouterr().err


def test_a_trace_is_lines_json_and_a_qlog_file(gateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url, handler = gateway
    file = tmp_path / "peer.sqlog"
    assert cli.run(["trace", "peer1234", "--gateway", url, "--for", "5", "--qlog", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["→", "←", "←"]
    assert "gossip       1  digest  12 B  count 1" in lines[1]
    names = [json.loads(record)["name"] for record in file.read_text().split("\x1e")[2:]]
    assert names == ["quic:connection_started", "quic:stream_data_moved", "isochrone:frame", "quic:stream_data_moved"]
    assert cli.run(["trace", "peer1234", "--gateway", url, "--json", "--content", "--count", "2"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == TRACED[:2]
    assert handler.asked == ["/mesh/trace/peer1234?for=5.0", "/mesh/trace/peer1234?content=1"]


def test_a_trace_that_cannot_be_says_why(gateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["trace", "nobody", "--gateway", gateway[0]]) == cli.EXIT_FAILED
    assert "no such request" in capsys.readouterr().err
    assert cli.run(["trace", "peer1234", "--gateway", gateway[0], "--qlog", str(tmp_path)]) == cli.EXIT_FAILED
    assert "--qlog" in capsys.readouterr().err


def test_spec_tells_where_it_is_and_what_is_spoken(gateway, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["spec", "--gateway", gateway[0]]) == 0
    text = capsys.readouterr().out
    assert "/x/spec" in text
    assert "04-gossip.md" in text
    assert cli.run(["spec", "--gateway", gateway[0], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["spec"] == "/x/spec"


def test_embed_prints_the_vector(gateway, capsys: pytest.CaptureFixture[str]) -> None:
    url, handler = gateway
    assert cli.run(["embed", "cat", "--gateway", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["embedding"] == VECTOR
    assert handler.received[0]["model"] == "mini"
    assert cli.run(["embed", "cat", "--gateway", url]) == 0
    assert "3 dimensions: [0.2500, -0.5000, 1.0000]" in capsys.readouterr().out


def test_running_node_is_found_through_its_state_directory(tmp_path: Path, gateway, capsys: pytest.CaptureFixture[str]) -> None:
    url, _ = gateway
    ready = Ready("12D3KooWA", ("/ip4/127.0.0.1/udp/1/quic-v1/p2p/12D3KooWA",), url)
    assert write_node_file(tmp_path, ready) is None
    assert find_node(tmp_path).ready == ready
    assert cli.run(["models", "--state-dir", str(tmp_path), "--json"]) == 0
    remove_node_file(tmp_path)
    remove_node_file(tmp_path)
    with pytest.raises(NoNodeError, match="no node is running here"):
        find_node(tmp_path)


def test_file_of_a_dead_node_is_recognised(tmp_path: Path) -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    write_node_file(tmp_path, Ready("12D3KooWA", (), "http://127.0.0.1:1"))
    path = tmp_path / NODE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": pid}))
    with pytest.raises(NoNodeError, match=rf"process {pid} ended without a clean stop.*isochrone up"):
        find_node(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"pid": "x"}', "{"])
def test_damaged_node_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / NODE_FILE).write_text(text)
    with pytest.raises(NoNodeError, match=r"node\.json is damaged"):
        find_node(tmp_path)


def test_ready_is_one_json_line_or_tells_how_to_join(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    ready = Ready("12D3KooWA", ("/ip4/192.0.2.7/udp/4001/quic-v1/p2p/12D3KooWA",), "http://127.0.0.1:8421")
    announce_ready(ready, as_json=True, console=Console())
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert json.loads(line) == {"peer_id": ready.peer_id, "addresses": list(ready.addresses), "gateway": ready.gateway}
    announce_ready(ready, as_json=False, console=Console())
    text = capsys.readouterr().out
    assert "isochrone up --bootstrap /ip4/192.0.2.7/udp/4001/quic-v1/p2p/12D3KooWA\n" in text
    assert "curl http://127.0.0.1:8421/v1/models" in text


def test_node_file_that_others_can_write_is_not_believed(tmp_path: Path) -> None:
    write_node_file(tmp_path, Ready("12D3KooWA", (), "http://127.0.0.1:1"))
    (tmp_path / NODE_FILE).chmod(0o666)
    with pytest.raises(NoNodeError, match="chmod 600"):
        find_node(tmp_path)


def test_qlog_file_is_private_and_content_is_warned_of(tmp_path: Path, gateway, capsys: pytest.CaptureFixture[str]) -> None:
    url, _ = gateway
    file = tmp_path / "x.sqlog"
    old = os.umask(0)
    try:
        assert cli.run(["trace", "peer1234", "--gateway", url, "--content", "--qlog", str(file)]) == 0
    finally:
        os.umask(old)
    assert file.stat().st_mode & 0o777 == 0o600
    assert "prompts and answers are shown" in capsys.readouterr().err


def test_keys_stand_in_no_representation() -> None:
    from mesh.engines.openai import OpenAIConfig

    assert "secret" not in repr(OpenAIConfig(api_key="secret"))
