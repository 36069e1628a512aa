"""What peers may cost, and who is turned away for having cost too much: accounts, faults and bans that expire."""

from protocol.conduct.config import STREAM_FAULT, Account, Allowance, ConductConfig
from protocol.conduct.machine import BanExpired, Conduct, Fact, PeerBanned, PrefixBanned
from protocol.conduct.prefixes import Prefix, prefix_of, prefix_text

__all__ = [
    "STREAM_FAULT",
    "Account",
    "Allowance",
    "BanExpired",
    "Conduct",
    "ConductConfig",
    "Fact",
    "PeerBanned",
    "Prefix",
    "PrefixBanned",
    "prefix_of",
    "prefix_text",
]
