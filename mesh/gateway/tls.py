"""TLS of the gateway, for callers on other machines: the owner's certificate, HTTP/1.1, TLS 1.2 at least.

Source: RFC 9325 (recommendations for secure use of TLS).
Spec: docs/gateway.md, section "From other machines".
"""

import ssl
from pathlib import Path

from mesh.keyfile import KeyFileError, check_private


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """The context that serves with a certificate and its key, both in PEM.

    Raises:
        KeyFileError: either cannot be read, others can read the key, or they do not belong together.
    """
    try:
        with key.open("rb") as file:
            check_private(key, file.fileno())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        # An empty password, so that a key that wants one is refused and not asked about on a terminal that nobody sits at.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        raise KeyFileError(
            f"{certificate} and {key} are not a certificate in PEM and its key without a password ({error.reason or error})"
        ) from error
    except OSError as error:
        raise KeyFileError(f"{error.filename or certificate} cannot be read ({error.strerror})") from error
    return context
