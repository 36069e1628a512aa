"""Runs a command that ends when its starter ends: `python leash.py STARTER_PID COMMAND…`.

The kernel sends SIGTERM to a process whose starting thread has gone, if the process asked for it (`prctl(2)`, PR_SET_PDEATHSIG).
The wish survives `execve`, so this program asks, looks whether the starter is gone already, and becomes the command. It asks in
the child itself, because Python's `preexec_fn` is not safe in a program with threads.
"""

import ctypes
import os
import signal
import sys

# prctl(2), linux/prctl.h.
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ask for the signal and become the command."""
    starter, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != starter:
        sys.exit(os.EX_UNAVAILABLE)
    os.execv(command[0], command)  # noqa: S606  # the starter chose the command


if __name__ == "__main__":
    main()
