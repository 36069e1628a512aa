"""Runs commands in the virtual machine for `guests.py`: one line of JSON a command, one a result, over a serial port of virtio.

A command's output goes into a file in the folder that host and guest share, so that it can be read also while the command runs,
and after the machine has died. Started by init.sh with the standard library alone.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

EXCHANGE = Path("/run/exchange")
PORTS = Path("/sys/class/virtio-ports")
KILLED_S_MAX = 10.0
"""Seconds until the output of a killed command is closed; longer where something it started has left its group."""


def port() -> Path:
    """The device of the port that the host calls `agent`."""
    for folder in PORTS.iterdir():
        if (folder / "name").read_text().strip() == "agent":
            return Path("/dev") / folder.name
    sys.exit(f"no port is called agent in {PORTS}")


def run(request: dict) -> dict:
    """Run one command; its exit status is negative for a signal, and None where the time limit ended it."""
    with Path(EXCHANGE / request["output"]).open("wb") as output:
        try:
            process = subprocess.Popen(
                request["command"],
                cwd=request["folder"],
                env={**os.environ, **request["environment"]},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            output.write(f"{error}\n".encode())
            return {"status": 127}
        try:
            return {"status": process.wait(request["time_s_max"])}
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(KILLED_S_MAX)
            return {"status": None}


def main() -> None:
    """Serve until the host closes the port."""
    with port().open("r+b", buffering=0) as line_port:
        line_port.write(b'{"ready": true}\n')
        for line in iter(line_port.readline, b""):
            line_port.write(json.dumps(run(json.loads(line))).encode() + b"\n")


if __name__ == "__main__":
    main()
