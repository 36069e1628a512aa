"""Fabrics that fail, stall, corrupt and revoke at every step: the core of chapter 11 on virtual time."""

from sim.fabric.run import FabricResult, FabricSettings, run_fabric

__all__ = ["FabricResult", "FabricSettings", "run_fabric"]
