"""The wait for a slot, as whoever reads a load works it out.

With n requests before this one, c slots and mean service time S, the wait is (n - c + 1) S / c when n >= c and nothing otherwise,
which is the mean of an M/M/c queue for a request that finds n in the system. Routing ranks by it, and a node tells its load
anew when it has changed.

Source: L. Kleinrock, "Queueing Systems", volume 1 (1975), section 3.5 (M/M/c).
Spec: docs/spec/06-inference.md.
"""

from protocol.load import ModelLoad


def queue_time(load: ModelLoad | None, in_flight: int, service_s: float) -> float:
    """Expected wait for a slot, in seconds.

    Args:
        load: what the candidate says of the model, None when it says nothing; then it is taken to have one slot.
        in_flight: requests of this node that it has not finished.
        service_s: mean time in a slot.

    Source: Kleinrock, section 3.5: with n >= c in an M/M/c system, n - c + 1 departures have to pass, at a rate of c / S.
    """
    if load is None:
        return in_flight * service_s
    slots = max(1, load.slots)
    ahead = max(load.running + load.waiting, in_flight)
    wait_s = max(0, ahead - slots + 1) * service_s / slots
    return max(wait_s, load.queue_s) if load.waiting > 0 else wait_s


def turns(load: ModelLoad) -> float:
    """Expected wait for a slot in service times, unitless: what a wait means beside what follows it."""
    if load.service_s > 0.0:
        return queue_time(load, 0, load.service_s) / load.service_s
    slots = max(1, load.slots)
    return max(0, load.running + load.waiting - slots + 1) / slots
