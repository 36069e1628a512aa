"""Bounds and constants of the estimate of distances."""

from dataclasses import dataclass

NOISE = 0.15
"""Variance of what one measured path tells of another beside it, in units of the variance that neighbouring paths share: between
0.1 and 0.3 the error on PlanetLab data differs by less than 0.003 (docs/coordinates.md)."""

REACH_SHARE = 0.1
"""Share of all pairs of peers that are nearer than residuals reach, unitless: between 0.05 and 0.2 it makes no difference."""


COVERAGE = 0.9
"""Share of truths that an interval is to hold, unitless."""

PRIOR_WIDTH = 0.15
"""Half the width of an interval, as a logarithm, before anything was learnt: between that of a steady path and that of a shared
link (docs/coordinates.md)."""

PRIOR_COUNT = 10
"""How many differences the prior counts for, a count."""


@dataclass(frozen=True, slots=True)
class DistanceConfig:
    """Everything the estimate can be told.

    Attributes:
        peers_max: peers that are placed by their edges; those beyond count by the coordinate on their cards.
        edges_max: edges that are used of each peer; the nearest and some of the others where there are more.
        rtt_s_min: shortest round trip in seconds that is told apart from none: a loopback takes 20 us.
        rtt_s_max: longest in seconds that can be a distance (`coordinates.RTT_S_MAX`).
        relative_s_min: errors count relative to the round trip, and to this many seconds where it is shorter.
        relative_share: or to this share of the typical round trip where that is less: a mesh in one room has distances too.
        huber: relative error, unitless, past which an edge pulls no harder.
        cut: and past which it pulls ever less: what is out of all proportion is a lie or a detour. With 0.5 a third of liars that
            sign whatever they like among themselves change nothing; without it they make everybody's place worthless.
        damping: Levenberg-Marquardt's, unitless. With it and `gain` all peers can be moved at once.
        gain: share of each step that is made, unitless.
        step_typical_max: longest step, in typical round trips.
        height_s_min: smallest height in seconds.
        anneal_sweeps: sweeps over all peers in which the places of a new chart are shaken, ever less.
        settle_sweeps: sweeps at most after that, or after edges have changed.
        settled_share: places that move less than this in a sweep, in typical round trips, have settled.
        shake_typical: how far they are shaken at first, in typical round trips.
        grown: a chart that has grown by this factor since it was shaken is shaken again.
        starts: places from which a peer is tried that was never placed, and this node now and then.
        start_steps: steps from each of them.
        rows_at_once: peers moved in one slice of work: some 2 ms.
        residual_rows_at_once: peers whose residuals are worked out in one slice: some 5 ms.
        samples_max: samples kept of each path.
        sample_s: seconds that a sample counts.
        measured_max: paths of this node that are kept; the one longest unmeasured makes room.
        paths_max: of these, as many as its place is worked out from.
        resolve_s: seconds between two looks for this node's own place.
        field_s: seconds for which what residuals say of everybody is used before it is worked out anew, unless much was measured.
        field_rows_at_once: peers of whom it is worked out in one slice: some 3 ms.
        field_grown: by which factor the paths that were measured have grown then.
        chart_s_max: seconds between two looks for what has changed in the chart, at most; at first `resolve_s`, then ever longer.
        residuals_s: seconds between two looks for what the residuals of everybody's edges say: it is most of the work.
        slice_s: seconds between two slices of work, in which the node does what else there is to do.
        drawn_first: peers measured at random before any is chosen for being near.
        hops: nearest measured peers through whose edges other near ones are looked for.
    """

    peers_max: int = 2048
    edges_max: int = 128
    rtt_s_min: float = 1e-5
    rtt_s_max: float = 10.0
    relative_s_min: float = 1e-3
    relative_share: float = 0.02
    huber: float = 0.3
    cut: float = 0.5
    damping: float = 0.3
    gain: float = 0.7
    step_typical_max: float = 0.5
    height_s_min: float = 2e-5
    anneal_sweeps: int = 40
    settle_sweeps: int = 60
    settled_share: float = 0.02
    shake_typical: float = 0.25
    grown: float = 1.5
    starts: int = 8
    start_steps: int = 8
    rows_at_once: int = 64
    residual_rows_at_once: int = 16
    samples_max: int = 16
    sample_s: float = 3600.0
    measured_max: int = 4096
    paths_max: int = 256
    resolve_s: float = 5.0
    field_s: float = 60.0
    field_rows_at_once: int = 128
    field_grown: float = 1.1
    chart_s_max: float = 20.0
    residuals_s: float = 300.0
    slice_s: float = 0.002
    drawn_first: int = 16
    hops: int = 4
