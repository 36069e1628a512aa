"""The gateway from other machines: a key and TLS, or the owner's word; with the command line that finds both by itself."""

import datetime as dt
import ipaddress
import json
import ssl
from pathlib import Path

import httpx
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from gateway_node import Start
from hostile_door import GOOD, Door, door, get, post, read_reply

from mesh import cli
from mesh.config import ConfigError, Ready, StartError, resolve
from mesh.gateway import GatewayAddressError, GatewayConfig, server_context
from mesh.gateway.server import listen
from mesh.gatewayclient import GatewayClient
from mesh.keyfile import KeyFileError, KeyRing, open_key_file, read_keys
from mesh.nodefile import ClientError, find_node, write_node_file
from mesh.service import gateway_config

KEY = "iso_3dGh5JqkN8wEr2Zx7"


def make_certificate(folder: Path, name: str = "mesh.example") -> tuple[Path, Path]:
    """A certificate that signed itself, and its key, as an owner makes them with openssl."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=30))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    cert_path, key_path = folder / f"{name}.crt", folder / f"{name}.key"
    cert_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.touch(mode=0o600)
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_path, key_path


@pytest.mark.parametrize(
    ("flags", "missing"),
    [
        ({}, "--gateway-key-file and --gateway-tls-cert"),
        ({"gateway_key_file": "keys"}, "wants --gateway-tls-cert too"),
        ({"gateway_tls_cert": "c", "gateway_tls_key": "k"}, "wants --gateway-key-file too"),
    ],
)
@pytest.mark.parametrize("host", ["0.0.0.0:8421", "[::]:8421", "192.0.2.1:0", "169.254.1.1:80"])
def test_other_machines_want_a_key_and_tls(tmp_path: Path, host: str, flags: dict[str, str], missing: str) -> None:
    with pytest.raises(ConfigError, match=missing) as caught:
        resolve({"gateway": host, **flags}, {"HOME": str(tmp_path)})
    assert "--gateway-insecure-remote" in str(caught.value)


def test_with_both_or_with_the_owners_word_it_may_listen(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path)}
    both = {"gateway": "0.0.0.0:0", "gateway_key_file": "k", "gateway_tls_cert": "c", "gateway_tls_key": "d"}
    assert resolve(both, environment).gateway_key_file == Path("k").absolute()
    for told in (True, "yes", "1"):
        assert resolve({"gateway": "0.0.0.0:0", "gateway_insecure_remote": told}, environment).gateway_insecure_remote
    with pytest.raises(ConfigError, match="true or false"):
        resolve({"gateway_insecure_remote": "perhaps"}, environment)
    file = tmp_path / "c.toml"
    file.write_text('gateway = "0.0.0.0:0"\ngateway_insecure_remote = true\ngateway_hosts = ["Mesh.Example", "192.0.2.7"]\n')
    assert resolve({}, environment, file).gateway_hosts == ("mesh.example", "192.0.2.7")
    with pytest.raises(ConfigError, match="gateway_tls_key too"):
        resolve({"gateway_tls_cert": "c"}, environment)
    for wrong in ("https://mesh.example", "mesh.example:80", "*.example", "a/b", ""):
        with pytest.raises(ConfigError, match="the name alone"):
            resolve({"gateway_hosts": [wrong]}, environment)


def test_server_itself_refuses_what_the_settings_refuse(tmp_path: Path) -> None:
    ring = KeyRing([("owner", KEY)])
    tls = server_context(*make_certificate(tmp_path))
    with pytest.raises(GatewayAddressError, match="no key and no TLS"):
        listen(GatewayConfig(host="0.0.0.0", port=0))
    with pytest.raises(GatewayAddressError, match="has no TLS"):
        listen(GatewayConfig(host="0.0.0.0", port=0, keys=ring))
    with pytest.raises(GatewayAddressError, match="has no key"):
        listen(GatewayConfig(host="0.0.0.0", port=0, tls=tls))
    listen(GatewayConfig(host="0.0.0.0", port=0, keys=ring, tls=tls)).close()


def test_key_of_a_certificate_is_looked_after(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    _, other = make_certificate(tmp_path, "other.example")
    key.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        server_context(cert, key)
    for wrong_cert, wrong_key in ((cert, other), (other, other), (tmp_path / "none", other), (cert, tmp_path / "none")):
        with pytest.raises(KeyFileError):
            server_context(wrong_cert, wrong_key)


async def test_tls_is_spoken_and_nothing_else_is_answered(nursery: trio.Nursery, tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    ring = KeyRing([("owner", KEY)])
    async with door(
        nursery, tls=server_context(cert, key), keys=ring, allowed_hosts=("mesh.example",), idle_timeout_s=0.5
    ) as opened:
        assert opened.url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=str(cert))
        headers = {"authorization": f"Bearer {KEY}", "host": "mesh.example"}
        async with httpx.AsyncClient(base_url=opened.url, verify=context) as client:
            assert (await client.get("/health")).status_code == 401
            answer = await client.post("/v1/chat/completions", json=GOOD, headers=headers)
            assert answer.json()["choices"][0]["message"]["content"] == "Grüße aus Köln"
            assert (await client.get("/health", headers=headers | {"host": "evil.example"})).status_code == 421
        plain = await opened.connect()
        await plain.send_all(get())
        assert (await read_reply(plain)).ended
        silent = await opened.connect()  # never shakes hands
        assert (await read_reply(silent)).ended
        await old_version_is_refused(opened, context)


async def old_version_is_refused(opened: Door, context: ssl.SSLContext) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(trio.BrokenResourceError):
        await trio.SSLStream(await opened.connect(), old, server_hostname="mesh.example").do_handshake()
    good = trio.SSLStream(await opened.connect(), context, server_hostname="mesh.example")
    await good.do_handshake()
    assert good.version() == "TLSv1.3"


async def test_client_that_never_reads_is_cut_under_tls_too(nursery: trio.Nursery, tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    async with door(nursery, tls=server_context(cert, key), write_timeout_s=0.3) as opened:
        socket = trio.socket.socket()
        socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
        await socket.connect(("127.0.0.1", opened.port))
        stream = trio.SSLStream(
            trio.SocketStream(socket), ssl.create_default_context(cafile=str(cert)), server_hostname="mesh.example"
        )
        await stream.send_all(post({"model": "endless", "messages": GOOD["messages"], "stream": True}))
        with trio.fail_after(30):
            await opened.engine.stopped.wait()
        socket.close()


async def test_command_line_uses_key_and_certificate_by_itself(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = make_certificate(tmp_path)
    key_file = tmp_path / "keys"
    running = await start(keys=open_key_file(key_file), tls=server_context(cert, key))
    write_node_file(tmp_path, Ready("12D3KooWA", (), running.url), key_file, cert)
    assert (tmp_path / "node.json").stat().st_mode & 0o777 == 0o600
    assert read_keys(key_file)[0][1] not in (tmp_path / "node.json").read_text()
    assert find_node(tmp_path).key_file == key_file

    async def command(*tokens: str) -> int:
        return await trio.to_thread.run_sync(lambda: cli.run(tokens))

    assert await command("models", "--state-dir", str(tmp_path), "--json") == 0
    assert json.loads(capsys.readouterr().out)["models"]
    named = ("models", "--json", "--gateway", running.url)
    assert await command(*named, "--gateway-key-file", str(key_file), "--gateway-tls-cert", str(cert)) == 0
    monkeypatch.setenv("ISOCHRONE_GATEWAY_KEY_FILE", str(key_file))
    monkeypatch.setenv("ISOCHRONE_GATEWAY_TLS_CERT", str(cert))
    assert await command(*named) == 0
    monkeypatch.delenv("ISOCHRONE_GATEWAY_KEY_FILE")
    assert await command(*named) == cli.EXIT_FAILED
    assert "wants a key" in capsys.readouterr().err
    other, _ = make_certificate(tmp_path, "other.example")
    assert await command(*named, "--gateway-tls-cert", str(other), "--gateway-key-file", str(key_file)) != 0
    key_file.chmod(0o644)
    assert await command(*named, "--gateway-key-file", str(key_file)) == cli.EXIT_FAILED
    assert "chmod 600" in capsys.readouterr().err


def test_certificate_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("nothing")
    with pytest.raises(ClientError, match="no certificate in PEM"):
        GatewayClient("https://127.0.0.1:1", None, tmp_path / "c")
    assert KEY not in repr(GatewayClient("http://127.0.0.1:1", KEY))


def test_settings_of_a_node_reach_its_gateway(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    flags = {
        "gateway": "0.0.0.0:0",
        "gateway_key_file": tmp_path / "keys",
        "gateway_tls_cert": cert,
        "gateway_tls_key": key,
        "gateway_hosts": ["mesh.example"],
    }
    config = gateway_config(resolve(flags, {"HOME": str(tmp_path)}))
    assert config.keys is not None
    assert config.keys.owner_of(read_keys(tmp_path / "keys")[0][1].encode()) == "owner"
    assert config.tls is not None
    assert config.allowed_hosts == ("mesh.example",)
    assert not config.insecure_remote
    (tmp_path / "keys").chmod(0o640)
    with pytest.raises(StartError, match="chmod 600"):
        gateway_config(resolve(flags, {"HOME": str(tmp_path)}))


def test_variable_that_is_no_setting_does_not_put_its_value_into_a_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({}, {"HOME": str(tmp_path), "ISOCHRONE_ENGINE_API_KEYS": "sk-secret"})
    assert "sk-secret" not in str(caught.value)
    assert resolve({}, {"HOME": str(tmp_path), "ISOCHRONE_ENGINE_API_KEY": "sk-secret"}).network
