"""Who may join: the network's key, delegations, join certificates, invitations, revocations and federation, as pure checks."""

from protocol.admission.config import AdmissionConfig
from protocol.admission.invites import Invites, Redeemed
from protocol.admission.issuer import Issuer
from protocol.admission.machine import Admission, NoticeTaken
from protocol.admission.messages import (
    JOIN_FRAME_BYTES_MAX,
    JOIN_PROTOCOL,
    NOTICE_FRAME_BYTES_MAX,
    NOTICES_PROTOCOL,
    Granted,
    JoinAnswer,
    JoinRequest,
    Refused,
    decode_join_answer,
    decode_join_request,
    decode_notice_frame,
    encode_join_answer,
    encode_join_request,
    encode_notice_frame,
)
from protocol.admission.notices import Federated, Notice, Revocation, open_notice, sign_notice
from protocol.admission.statements import (
    delegation_bytes,
    encode_guest,
    encode_member,
    network_id_of,
    open_certificate,
    open_delegation,
    open_shown,
    sign_certificate,
    sign_delegation,
)
from protocol.admission.tokens import open_token, parse_token, sign_token, token_text
from protocol.admission.values import Certificate, Delegation, Member, Right, Shown, Token

__all__ = [
    "JOIN_FRAME_BYTES_MAX",
    "JOIN_PROTOCOL",
    "NOTICES_PROTOCOL",
    "NOTICE_FRAME_BYTES_MAX",
    "Admission",
    "AdmissionConfig",
    "Certificate",
    "Delegation",
    "Federated",
    "Granted",
    "Invites",
    "Issuer",
    "JoinAnswer",
    "JoinRequest",
    "Member",
    "Notice",
    "NoticeTaken",
    "Redeemed",
    "Refused",
    "Revocation",
    "Right",
    "Shown",
    "Token",
    "decode_join_answer",
    "decode_join_request",
    "decode_notice_frame",
    "delegation_bytes",
    "encode_guest",
    "encode_join_answer",
    "encode_join_request",
    "encode_member",
    "encode_notice_frame",
    "network_id_of",
    "open_certificate",
    "open_delegation",
    "open_notice",
    "open_shown",
    "open_token",
    "parse_token",
    "sign_certificate",
    "sign_delegation",
    "sign_notice",
    "sign_token",
    "token_text",
]
