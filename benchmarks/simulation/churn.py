"""Half of the nodes replaced every five minutes: requests that find a qualified living peer at the first try."""

from importlib import import_module
from importlib.util import find_spec

from benchmarks.simulation.figures import NEVER, Figure
from benchmarks.simulation.scenario import Options

NAME = "churn"
GOAL = 99.5
"""Percent of the requests, the goal."""
FORM_S = 30.0
"""Seconds that the mesh has to form before nodes are replaced."""
LOAD_S = 300.0
"""Seconds of churn: half of the nodes are replaced once."""
QUICK_S = 5.0
"""Either of them in a quick run."""
MODELS = 8
"""Models in the mesh, a count: an eighth of the nodes is able to answer a request."""


def measure(nodes: int, seed: int, options: Options) -> list[Figure]:
    """Runs the simulator's churn where there is one."""
    if find_spec("sim.churn") is None:
        return [_figure(nodes, None, NEVER, "not measured: the simulator has no churn yet")]
    churn = import_module("sim.churn")
    form_s, load_s = (QUICK_S, QUICK_S) if options.quick else (FORM_S, LOAD_S)
    settings = churn.ChurnSettings(
        nodes=nodes, seed=seed, form_s=form_s, load_s=load_s, models=min(MODELS, nodes // 2), delays=options.delays
    )
    result = churn.Churn(settings).run(lambda now: options.progress(now / (form_s + load_s)))
    note = f"{result.requests} requests, {result.died} nodes died and {result.left} said goodbye; missed: {result.first_failures}"
    return [_figure(nodes, 100.0 * result.share, NEVER if options.quick else 1000, note)]


def _figure(nodes: int, ours: float | None, goal_nodes: int, note: str) -> Figure:
    return Figure(
        NAME,
        "requests that find a living qualified peer first time",
        ours,
        "%",
        nodes,
        "share of requests that the first peer asked answers, while half of the nodes are replaced every five minutes.",
        goal=GOAL,
        goal_nodes=goal_nodes,
        at_least=True,
        note=note,
    )
