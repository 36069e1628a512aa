"""Probes: how far each connected peer is, and whether it still answers.

Spec: docs/spec/05-coordinates.md.
"""

from protocol.probe.config import ProbeConfig
from protocol.probe.events import Liveness, Misbehaved, Output, PeerRecovered, PeerSuspected, SampleTaken, SendDatagram
from protocol.probe.machine import Probe
from protocol.probe.quality import PathQuality
from protocol.probe.wire import (
    ECHO_THREE_BYTES,
    KIND_ECHO,
    KIND_ECHO_THREE,
    KIND_PROBE,
    KIND_PROBE_THREE,
    KIND_THIRD_LEG,
    PROBE_BYTES,
    THREE_LEGS,
    Datagram,
    decode_datagram,
    encode_datagram,
)

__all__ = [
    "ECHO_THREE_BYTES",
    "KIND_ECHO",
    "KIND_ECHO_THREE",
    "KIND_PROBE",
    "KIND_PROBE_THREE",
    "KIND_THIRD_LEG",
    "PROBE_BYTES",
    "THREE_LEGS",
    "Datagram",
    "Liveness",
    "Misbehaved",
    "Output",
    "PathQuality",
    "PeerRecovered",
    "PeerSuspected",
    "Probe",
    "ProbeConfig",
    "SampleTaken",
    "SendDatagram",
    "decode_datagram",
    "encode_datagram",
]
