"""How far everyone is, from what was measured: a chart of the others, the own place in it, and estimates with intervals."""

from protocol.distances.chart import Chart
from protocol.distances.config import COVERAGE, DistanceConfig
from protocol.distances.draws import SeededDraws
from protocol.distances.machine import Distances

__all__ = ["COVERAGE", "Chart", "DistanceConfig", "Distances", "SeededDraws"]
