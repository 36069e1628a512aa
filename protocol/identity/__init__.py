"""Who a node is: its key, its peer id, its signatures, and the certificate that proves them inside TLS."""

from protocol.identity.certificate import (
    CERTIFICATE_BYTES_MAX,
    CERTIFICATE_ENTROPY_BYTES,
    TlsCertificate,
    make_certificate,
    read_certificate,
    verify_certificate,
)
from protocol.identity.keys import (
    PEER_ID_BYTES_MAX,
    PUBLIC_KEY_BYTES,
    SEED_BYTES,
    SIGNATURE_BYTES,
    Identity,
    PeerId,
    decode_public_key,
    encode_public_key,
    parse_peer_id,
    peer_id_from_bytes,
    peer_id_of,
    peer_id_text,
    public_key_of,
    verify_signature,
)

__all__ = [
    "CERTIFICATE_BYTES_MAX",
    "CERTIFICATE_ENTROPY_BYTES",
    "PEER_ID_BYTES_MAX",
    "PUBLIC_KEY_BYTES",
    "SEED_BYTES",
    "SIGNATURE_BYTES",
    "Identity",
    "PeerId",
    "TlsCertificate",
    "decode_public_key",
    "encode_public_key",
    "make_certificate",
    "parse_peer_id",
    "peer_id_from_bytes",
    "peer_id_of",
    "peer_id_text",
    "public_key_of",
    "read_certificate",
    "verify_certificate",
    "verify_signature",
]
