"""Virtual machines with a kernel of their own, over this machine's root: for links, RDMA devices and CXL memory that it has not.

    with booted(Machine()) as guest:
        guest.shell("modprobe veth; ip link add a type veth peer name b")
        print(guest.python("tests/guest/inside_something.py", "argument").told)

QEMU boots what scripts/guest.py made. The guest sees all files of this machine at the same paths, with the project and its
Python; what it writes is lost with it, except in the folder that both share: `guest.exchange` here, /run/exchange there. An agent
in it runs one command after the other (agent.py). A guest ends with its context, and with this process whatever happens.

With KVM, where it works, commands take as long as they do here. Without, the processor is emulated and everything takes ten to
thirty times as long: of times measured inside, only orders of magnitude mean anything.

Source: QEMU's manual, "Invocation" and "Compute Express Link (CXL)".
"""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from mesh.testnet import leash

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("ISOCHRONE_GUEST_DIR", ROOT / "build/guest"))
"""Where scripts/guest.py puts the kernel and the initramfs."""
CACHE = ROOT / "build/guest/cache"
"""Where the binding to RDMA devices is built on this machine: an emulated processor takes half a minute for it."""
QEMU = "qemu-system-x86_64"
INSIDE = "/run/exchange"
"""Where a guest sees the folder that it shares with this machine."""
BOOT_S_MAX = 300.0
"""Seconds until the agent answers: emulated on an idle core it takes ten. All limits leave room for a machine with five times as
much to do as it has cores: what hangs is found by them, not what is slow."""
COMMAND_S_MAX = 300.0
"""Seconds for a command unless the test says otherwise."""
GRACE_S = 15.0
"""Seconds more than a command may take until the guest itself counts as dead."""
TAIL_LINES = 100
"""Lines of a console or an output in an error; a kernel's panic with all it says has seventy."""
RESULT_BYTES_MAX = 4096
"""Longest line of the agent."""
PARAMETERS = (
    "console=ttyS0 panic=-1 quiet loglevel=5 mitigations=off nokaslr audit=0 selinux=0 apparmor=0 random.trust_cpu=on "
    "tsc=reliable no_timer_check rcupdate.rcu_expedited=1"
)
"""The kernel's parameters: end on a panic, and do nothing that takes an emulated processor long."""


class GuestError(Exception):
    """A guest did not boot, died, or a command in it failed; the text ends with what it wrote last."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a guest is made of.

    Attributes:
        name: its host name.
        processors: how many, one a socket.
        memory: as QEMU's `-m` wants it.
        board: QEMU's machine with its options.
        features: further flags of the processor.
        devices: further arguments of QEMU.
        parameters: further parameters of the kernel.
    """

    name: str = "guest"
    processors: int = 2
    memory: str = "2G"
    board: str = "q35"
    features: str = ""
    devices: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()


def with_cable(machine: Machine, folder: Path, end: int, number: int = 0) -> Machine:
    """Give a machine a network interface on one end, 0 or 1, of a cable between two guests; the cable is a folder.

    The hardware address of the interface ends with the number of the cable and that of the end, which begins with 1.
    """
    ends = [folder / f"end-{number}-0", folder / f"end-{number}-1"]
    netdev = f"dgram,id=cable-{number},local.type=unix,local.path={ends[end]},remote.type=unix,remote.path={ends[1 - end]}"
    device = f"virtio-net-pci,netdev=cable-{number},mac=52:54:00:00:{number:02}:{end + 1:02}"
    return replace(machine, devices=(*machine.devices, "-netdev", netdev, "-device", device))


def with_cxl_memory(machine: Machine, path: Path, labels: Path, size_mib: int = 256) -> Machine:
    """Give a machine a CXL type-3 device with persistent memory.

    Args:
        machine: without CXL so far.
        path: the file whose bytes are the device's; two guests on the same file share them as hosts on a pooled device do.
        labels: the file of its label storage area, which each guest needs for itself.
        size_mib: of both, a multiple of 256, the granularity of CXL's address decoders.
    """
    size = f"{size_mib}M"
    for file in (path, labels):
        with file.open("ab") as opened:
            opened.truncate(size_mib << 20)
    return replace(
        machine,
        memory=f"{machine.memory},maxmem=8G,slots=8",
        board=f"{machine.board},cxl=on,cxl-fmw.0.targets.0=cxl.1,cxl-fmw.0.size=4G",
        # As of QEMU 7.2 the device's interrupts and a kernel that knows it is a guest keep the region from being made.
        features=f"{machine.features},hypervisor=off",
        parameters=(*machine.parameters, "pci=nomsi"),
        devices=(
            *machine.devices,
            *("-object", f"memory-backend-file,id=cxl-memory,share=on,mem-path={path},size={size}"),
            *("-object", f"memory-backend-file,id=cxl-labels,share=on,mem-path={labels},size={size}"),
            *("-device", "pxb-cxl,bus_nr=12,bus=pcie.0,id=cxl.1"),
            *("-device", "cxl-rp,port=0,bus=cxl.1,id=cxl-port,chassis=0,slot=2"),
            *("-device", "cxl-type3,bus=cxl-port,memdev=cxl-memory,lsa=cxl-labels,id=cxl-device"),
        ),
    )


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that has ended: its exit status, negative for a signal, and all that it wrote."""

    status: int
    output: str

    @property
    def told(self) -> dict:
        """The JSON object that is the last line of the output."""
        return json.loads(self.output.splitlines()[-1])


class Guest:
    """A booted machine; made by `booted`.

    Attributes:
        exchange: the shared folder as this machine sees it.
    """

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], line: socket.socket) -> None:
        self.exchange = folder / "exchange"
        self._console = folder / "console"
        self._process = process
        self._line = line
        self._count = 0

    def run(self, *command: str, time_s_max: float = COMMAND_S_MAX, check: bool = True, **environment: str) -> Finished:
        """Run a command in the project's folder, and wait for its end.

        Args:
            *command: with its arguments.
            time_s_max: seconds until it is killed.
            check: raise where its exit status is not 0.
            **environment: further variables for it.

        Raises:
            GuestError: it failed, took too long, or the guest died.
        """
        self._count += 1
        name = f"output-{self._count}"
        request = {
            "command": command,
            "folder": str(ROOT),
            "environment": environment,
            "time_s_max": time_s_max,
            "output": name,
        }
        written = self.exchange / name
        try:
            self._line.sendall(json.dumps(request).encode() + b"\n")
            status = self._answer(time_s_max + GRACE_S)["status"]
        except (OSError, GuestError) as error:
            raise GuestError(f"{shlex.join(command)}: {error}\n{_tail(written)}\n{self._told_on_console()}") from None
        if status is None:
            raise GuestError(f"{shlex.join(command)} was not done after {time_s_max:g} s:\n{_tail(written)}")
        if check and status != 0:
            raise GuestError(f"{shlex.join(command)} ended with {status}:\n{_tail(written)}\n{self._told_on_console()}")
        return Finished(status, written.read_text(errors="replace"))

    def shell(self, script: str, *arguments: str, time_s_max: float = COMMAND_S_MAX, check: bool = True) -> Finished:
        """Run a script with bash, which stops at the first failure and writes every command; see `run`."""
        return self.run("bash", "-euxo", "pipefail", "-c", script, "bash", *arguments, time_s_max=time_s_max, check=check)

    def python(self, file: Path | str, *arguments: str, time_s_max: float = COMMAND_S_MAX, check: bool = True) -> Finished:
        """Run a Python file of the project with the project's Python; see `run`."""
        command = (sys.executable, "-u", str(ROOT / file), *arguments)
        return self.run(*command, time_s_max=time_s_max, check=check, PYTHONPATH=str(ROOT), PYTHONDONTWRITEBYTECODE="1")

    def wait_ready(self, within_s: float) -> None:
        """Wait for the agent's first word."""
        try:
            self._answer(within_s)
        except (OSError, GuestError) as error:
            raise GuestError(f"the guest did not boot: {error}\n{self._told_on_console()}") from None

    def _answer(self, within_s: float) -> dict:
        """The agent's next line."""
        self._line.settimeout(within_s)
        received = b""
        while not received.endswith(b"\n") and len(received) < RESULT_BYTES_MAX:
            part = self._line.recv(RESULT_BYTES_MAX)
            if not part:
                raise GuestError(f"the guest has ended (QEMU's exit status: {self._process.wait(GRACE_S)})")
            received += part
        return json.loads(received)

    def _told_on_console(self) -> str:
        return f"Its console:\n{_tail(self._console)}\nQEMU: {_tail(self._console.with_name('qemu.log'))}"


@contextmanager
def booted(machine: Machine) -> Iterator[Guest]:
    """Boot a machine and end it with the context.

    Raises:
        GuestError: it does not boot; `missing` tells beforehand what it needs.
    """
    folder = Path(tempfile.mkdtemp(prefix="isochrone-guest-"))  # short: the path of a unix socket has 108 bytes at most
    process = None
    try:
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(str(folder / "line"))
            door.listen(1)
            door.settimeout(GRACE_S)
            (folder / "exchange").mkdir()
            (folder / "exchange/settings").write_text(_settings(machine))
            with (folder / "qemu.log").open("wb") as log:
                command = [sys.executable, str(leash.__file__), str(os.getpid()), *_command(machine, folder)]
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                line, _ = door.accept()
            except TimeoutError:
                raise GuestError(f"QEMU did not start:\n{_tail(folder / 'qemu.log')}") from None
        with line:
            guest = Guest(folder, process, line)
            guest.wait_ready(BOOT_S_MAX)
            yield guest
    finally:
        if process is not None:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def missing() -> str:
    """What keeps guests from being booted here, in words; empty where nothing does."""
    if shutil.which(QEMU) is None:
        return f"{QEMU} is not installed; `make test-guest` installs it"
    if not (FOLDER / "ready").exists():
        return f"there is no kernel in {FOLDER}; `make test-guest` fetches one"
    return ""


@cache
def has_kvm() -> bool:
    """Whether KVM runs a processor here; some virtual machines only say so. ISOCHRONE_GUEST_KVM=0 forbids it."""
    if os.environ.get("ISOCHRONE_GUEST_KVM") == "0" or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    command = [QEMU, "-accel", "kvm", "-cpu", "host", "-machine", "q35", "-nodefaults", "-display", "none", "-monitor", "stdio"]
    return subprocess.run(command, input=b"quit\n", capture_output=True, check=False).returncode == 0


def _settings(machine: Machine) -> str:
    """What init.sh reads."""
    values = {
        "modules": str((FOLDER / "kernel/lib/modules").resolve()),
        "python": sys.executable,
        "agent": str(ROOT / "tests/guest/agent.py"),
        "name": machine.name,
        "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        "LANG": "C.UTF-8",
        "HOME": "/run/home",
    }
    exported = "export PATH LANG HOME\n"
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items()) + exported


def _command(machine: Machine, folder: Path) -> list[str]:
    """QEMU's command line."""
    accelerator, processor = ("kvm", "host") if has_kvm() else ("tcg,thread=multi,tb-size=512", "max,la57=off")
    qemu = shutil.which(QEMU)
    assert qemu is not None, missing()
    shared = "security_model=none,multidevs=remap"
    return [
        *(qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-accel", accelerator, "-cpu", processor + machine.features),
        *("-smp", f"{machine.processors},sockets={machine.processors}", "-m", machine.memory, "-machine", machine.board),
        *("-kernel", str(FOLDER / "vmlinux"), "-initrd", str(FOLDER / "initramfs")),
        *("-append", " ".join((PARAMETERS, *machine.parameters))),
        *("-serial", f"file:{folder}/console"),
        *("-virtfs", f"local,path=/,mount_tag=host,readonly=on,{shared}"),
        *("-virtfs", f"local,path={folder}/exchange,mount_tag=exchange,{shared}"),
        *("-device", "virtio-serial-pci", "-chardev", f"socket,id=line,path={folder}/line"),
        *("-device", "virtserialport,chardev=line,name=agent"),
        *machine.devices,
    ]


def _tail(path: Path) -> str:
    """The last lines of a file, also of one that is not there."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-TAIL_LINES:])
    except OSError:
        return "(nothing)"
