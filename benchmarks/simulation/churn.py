"""Half of the nodes replaced every five minutes: requests that find a qualified living peer at the first try."""

from importlib.util import find_spec

from benchmarks.simulation.figures import NEVER, Figure
from benchmarks.simulation.scenario import Options

NAME = "churn"
GOAL = 99.5


def measure(nodes: int, seed: int, options: Options) -> list[Figure]:
    """The row; not measured as long as the simulator has no churn."""
    del seed, options
    assert find_spec("sim.churn") is None, "the simulator has churn: measure it here"
    return [
        Figure(
            NAME,
            "requests that find a living qualified peer first time",
            None,
            "%",
            nodes,
            "share of requests that the first peer asked answers, while half of the nodes are replaced every five minutes.",
            goal=GOAL,
            goal_nodes=NEVER,
            at_least=True,
            note="not measured: the simulator has no churn yet",
        )
    ]
