"""Where the hostile benchmark takes place: a network namespace in which a whole range of addresses is this machine.

A node holds nothing against addresses of loopback and of private networks by prefix, for there its owner lives. So that it treats
the offender as one from outside, the benchmark runs, where the kernel lets it, in a network namespace of its own whose loopback
answers for 198.18.0.0/15, the range for benchmarks. Where it does not, 127.0.0.0/8 serves, and the table says so.

Source: RFC 2544 appendix C.2.2 (198.18.0.0/15); ip-route(8) on routes of the type `local`.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

INSIDE = "BENCHMARKS_HOSTILE_INSIDE"
"""Set in the namespace."""

RANGE = "198.18.0.0/15"


def is_inside() -> bool:
    """Whether this process lives in the namespace."""
    return INSIDE in os.environ


def run_inside(arguments: Sequence[str]) -> int | None:
    """Run the benchmark again inside a namespace; None where the kernel or the machine has none to give."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return None
    enter = [unshare, "--net"] if os.geteuid() == 0 else [unshare, "--user", "--map-root-user", "--net"]
    environment = {**os.environ, INSIDE: "1"}
    if subprocess.run(
        [*enter, sys.executable, "-m", "benchmarks.hostile_net"], env=environment, capture_output=True, check=False
    ).returncode:
        return None
    return subprocess.run(
        [*enter, sys.executable, "-m", "benchmarks.hostile", *arguments], env=environment, check=False
    ).returncode


def prepare() -> None:
    """Raise loopback, and have it answer for the whole range.

    Raises:
        OSError: the kernel does not let this process.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as netlink:
            loopback = netlink.link_lookup(ifname="lo")[0]
            netlink.link("set", index=loopback, state="up")
            netlink.route("replace", dst=RANGE, oif=loopback, type="local", table=255, scope=254)
    except NetlinkError as error:
        raise OSError(error.code, str(error)) from error


def node_host() -> str:
    """Where the node listens."""
    return "198.18.0.1" if is_inside() else "127.0.0.1"


def honest_host(number: int) -> str:
    """Where an honest peer lives: in a network of its own."""
    return f"198.18.{20 + number}.1" if is_inside() else f"127.{20 + number}.1.1"


def offender_host() -> str:
    """Where the offender lives."""
    return "198.18.255.6" if is_inside() else "127.66.6.6"


def forged(number: int) -> bytes:
    """An address that the offender pretends to have, another one for each of some ten thousand numbers."""
    if is_inside():
        return bytes((198, 19, number // 250 % 250, number % 250 + 1))
    return bytes((127, 100 + number % 100, number // 100 % 250 + 1, number % 200 + 1))


if __name__ == "__main__":
    prepare()
