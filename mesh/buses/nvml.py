"""NVIDIA's GPUs as the driver tells them through NVML: names, memory, places on the bus, and what passes over it.

The binding is optional, the driver may be missing, and a GPU may have fallen off the bus: what does not answer is left out.

Source: the NVML API reference (nvmlDeviceGetPciInfo, nvmlDeviceGetPcieThroughput).
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import ModuleType

GPUS_MAX = 16
"""GPUs told: the largest common servers have 8, or 16 as seen by one host."""
_KB = 1000  # bytes in the KB of PCIe throughput


@dataclass(frozen=True, slots=True)
class NvmlGpu:
    """One GPU: its place in the driver's list, what it is called, its memory (0 unknown) and its PCI function (empty unknown)."""

    index: int
    name: str
    memory_bytes: int
    address: str = ""


def list_gpus() -> tuple[NvmlGpu, ...]:
    """The GPUs in the driver's order; empty without the binding, the driver or a GPU."""
    found = []
    with _session() as nvml:
        if nvml is None:
            return ()
        for index in range(_count(nvml)):
            # One GPU that has fallen off the bus must not hide the others.
            with suppress(nvml.NVMLError):
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                name = _text(nvml.nvmlDeviceGetName(handle))
                memory, address = 0, ""
                with suppress(nvml.NVMLError):  # GPUs that share the host's memory do not say
                    memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
                with suppress(nvml.NVMLError):
                    address = pci_address(_text(nvml.nvmlDeviceGetPciInfo(handle).busId))
                found.append(NvmlGpu(index, name, memory, address))
    return tuple(found)


def read_throughput() -> dict[str, tuple[float, float]]:
    """What passes to and from each GPU, in bytes per second, by PCI function; the driver watches for 20 ms each."""
    passing = {}
    with _session() as nvml:
        if nvml is None:
            return {}
        for index in range(_count(nvml)):
            with suppress(nvml.NVMLError):
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                address = pci_address(_text(nvml.nvmlDeviceGetPciInfo(handle).busId))
                received = nvml.nvmlDeviceGetPcieThroughput(handle, nvml.NVML_PCIE_UTIL_RX_BYTES)
                sent = nvml.nvmlDeviceGetPcieThroughput(handle, nvml.NVML_PCIE_UTIL_TX_BYTES)
                passing[address] = (float(received * _KB), float(sent * _KB))
    return passing


def pci_address(bus_id: str) -> str:
    """The kernel's name of the function that NVML calls `00000000:3B:00.0`; empty where it is none."""
    domain, _, rest = bus_id.strip().lower().partition(":")
    try:
        return f"{int(domain, 16):04x}:{rest}" if rest else ""
    except ValueError:
        return ""


@contextmanager
def _session() -> Iterator[ModuleType | None]:
    """The binding with the driver open; None where there is no binding or no driver."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _count(nvml: ModuleType) -> int:
    try:
        return min(int(nvml.nvmlDeviceGetCount()), GPUS_MAX)
    except nvml.NVMLError:
        return 0


def _text(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode("utf-8", "replace")
