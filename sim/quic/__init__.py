"""The second tier: whole cores over real QUIC endpoints, on virtual time."""

import logging

from sim.quic.world import QuicWorld

# The QUIC libraries log every fault of a peer; here a fault is an output of the endpoint, which the journal notes.
logging.getLogger("quic").setLevel(logging.CRITICAL)

__all__ = ["QuicWorld"]
