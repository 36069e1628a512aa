"""What the core found out, as metrics and log lines: the one place where facts are taken apart.

Source: docs/architecture.md, "The core".
"""

from mesh.telemetry import Telemetry
from protocol import gossip, membership, probe
from protocol.errors import ErrorCode


def observe(telemetry: Telemetry, fact: object) -> None:
    """Turns one of the core's outputs into metrics and log lines; what needs neither is passed over."""
    match fact:
        case gossip.RecordAccepted(record):
            telemetry.record_accepted(record.kind)
        case gossip.RecordRefused(_, code):
            telemetry.record_refused(code)
        case gossip.Equivocated(kept):
            telemetry.peer_faulted(kept.peer_id, ErrorCode.BAD_SIGNATURE, "signed two records with one sequence number")
        case gossip.Misbehaved(peer_id, code):
            telemetry.peer_faulted(peer_id, code, "gossip")
        case probe.Misbehaved(peer_id, code, detail):
            telemetry.peer_faulted(peer_id, code, detail)
        case probe.PeerSuspected(peer_id):
            telemetry.peer_state_changed(peer_id, "suspected")
        case membership.PeerJoined(peer_id):
            telemetry.peer_state_changed(peer_id, "alive")
        case membership.PeerLeft(peer_id, reason):
            telemetry.peer_state_changed(peer_id, "gone")
            telemetry.log.debug("peer left", reason=reason)
        case _:
            pass
