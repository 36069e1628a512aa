"""What the core found out, as metrics and log lines: the one place where facts are taken apart.

Source: docs/architecture.md, "The core".
"""

from mesh.telemetry import Telemetry
from protocol import conduct, gossip, membership, probe, pubsub, suspicion
from protocol.edges import EdgeDisputed
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
        case pubsub.PubsubMisbehaved(peer_id, code):
            telemetry.peer_faulted(peer_id, code, "gossipsub")
        case probe.Misbehaved(peer_id, code, detail):
            telemetry.peer_faulted(peer_id, code, detail)
        case gossip.Grafted(peer_id):
            telemetry.link_changed(peer_id, in_mesh=True)
        case gossip.Pruned(peer_id):
            telemetry.link_changed(peer_id, in_mesh=False)
        case _:
            _observe_standing(telemetry, fact)


def _observe_standing(telemetry: Telemetry, fact: object) -> None:
    """The same for what the node and others think of peers, and of this node."""
    match fact:
        case probe.PeerSuspected(peer_id):
            telemetry.peer_state_changed(peer_id, "suspected")
        case membership.PeerJoined(peer_id):
            telemetry.peer_state_changed(peer_id, "alive")
        case membership.PeerLeft(peer_id, reason):
            telemetry.peer_state_changed(peer_id, "left", reason)
        case membership.PeerGone(peer_id, reason):
            telemetry.peer_state_changed(peer_id, "gone", reason)
        case membership.PeerForgotten(peer_id):
            telemetry.peer_forgotten(peer_id)
        case EdgeDisputed(one, other, one_s, other_s):
            telemetry.edge_disputed(one, other, one_s, other_s)
        case suspicion.Doubted(key):
            telemetry.peer_doubted(key)
        case suspicion.Refute():
            telemetry.refuted()
        case conduct.PeerBanned(peer_id, code, ban_s):
            telemetry.peer_banned(peer_id, code, ban_s)
        case conduct.PrefixBanned(prefix, ban_s):
            telemetry.prefix_banned(conduct.prefix_text(prefix), ban_s)
        case conduct.BanExpired(peer_id, prefix):
            telemetry.ban_expired(peer_id, None if prefix is None else conduct.prefix_text(prefix))
        case _:
            pass
