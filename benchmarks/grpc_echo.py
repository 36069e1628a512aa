"""The yardstick: a unary gRPC echo over TLS between two processes, as a user of grpcio would write it.

Run as a module it is the server; it prints its port and the certificate's path, and serves until its standard input ends.
"""

import datetime as dt
import ipaddress
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

BYTES_MAX = 1 << 27
"""Largest message in bytes: a tensor of 64 MiB, as the benchmark of fabrics sends, and room."""
METHOD = "/bench.Echo/Unary"


def make_certificate() -> tuple[bytes, bytes]:
    """A self-signed certificate for localhost, as (key, certificate) in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, certificate.public_bytes(serialization.Encoding.PEM)


def serve() -> None:
    """Serves echoes until standard input ends."""
    key, certificate = make_certificate()
    handler = grpc.method_handlers_generic_handler(
        "bench.Echo", {"Unary": grpc.unary_unary_rpc_method_handler(lambda data, _: data)}
    )
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", BYTES_MAX)])
    server.add_generic_rpc_handlers((handler,))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
    server.start()
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(certificate)
        file.flush()
        print(port, file.name, flush=True)
        sys.stdin.read()
    server.stop(0)


class GrpcEcho:
    """A client of the echo server in another process; use as a context manager."""

    def __enter__(self) -> Self:
        """Starts the server and connects."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.grpc_echo"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        port, path = self._process.stdout.readline().split()
        credentials = grpc.ssl_channel_credentials(Path(path).read_bytes())
        options = [("grpc.max_receive_message_length", BYTES_MAX), ("grpc.max_send_message_length", BYTES_MAX)]
        self._channel = grpc.secure_channel(f"127.0.0.1:{port}", credentials, options)
        self._call = self._channel.unary_unary(METHOD)
        self._call(b"warm")
        return self

    def measure(self, payload: bytes, count: int) -> list[float]:
        """Round trips in seconds of `count` unary calls."""
        took = []
        for _ in range(count):
            started = time.perf_counter()
            answer = self._call(payload)
            took.append(time.perf_counter() - started)
            assert len(answer) == len(payload)
        return took

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Closes the channel and ends the server."""
        self._channel.close()
        self._process.communicate(timeout=10)


if __name__ == "__main__":
    serve()
