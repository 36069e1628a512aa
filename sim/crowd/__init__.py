"""A crowd of sybils against a mesh: the nine attacks on gossipsub, on the product's own cores."""

from sim.crowd.attacks import ATTACKS, Attack
from sim.crowd.run import CrowdResult, CrowdSettings, run_crowd

__all__ = ["ATTACKS", "Attack", "CrowdResult", "CrowdSettings", "run_crowd"]
