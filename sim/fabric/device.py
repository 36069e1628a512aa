"""A GPU that several processes use, as a driver shows it: allocations, tokens by which others open them, and its loss.

Source: the CUDA driver API reference, "Memory Management" (cuIpcGetMemHandle: memory that is freed while another process has it
open is undefined behaviour; CUDA_ERROR_DEVICE_UNAVAILABLE and sticky errors after a reset).
"""

from dataclasses import dataclass, field

from protocol.fabric import Kind
from protocol.fabric.gpu import TOKEN_BYTES
from sim.fabric.hardware import BrokenPromiseError, FabricError, Hardware, Segment


@dataclass(eq=False, slots=True)
class Device:
    """One GPU.

    Attributes:
        allocations: by token; memory that was freed is gone from here.
        open_by: who has which memory open, by token, each as often.
        lost: nothing works any more until it is reset.
        is_full: it has no memory left.
    """

    allocations: dict[bytes, Segment] = field(default_factory=dict[bytes, Segment])
    open_by: dict[tuple[str, bytes], int] = field(default_factory=dict[tuple[str, bytes], int])
    lost: bool = False
    is_full: bool = False
    _made: int = 0

    def allocate(self, hardware: Hardware, peer: str, size_bytes: int) -> tuple[bytes, Segment]:
        """Memory, and the token by which another process opens it.

        Raises:
            FabricError: there is none, or the device is lost.
        """
        self.work(hardware, "allocate")
        if self.is_full:
            raise FabricError("out of memory")
        self._made += 1
        token = self._made.to_bytes(TOKEN_BYTES, "big")
        segment = self.allocations[token] = hardware.allocate(peer, size_bytes)
        return token, segment

    def free(self, hardware: Hardware, token: bytes, *, waited: bool = False) -> None:
        """Give memory back to the driver. Who has it open would read whatever comes there next.

        Args:
            hardware: of whoever has allocated it.
            token: which.
            waited: whether the fabric has ended and its time is over: who has it open all the same gets an error.
        """
        segment = self.allocations.pop(token)
        still = [name for name, opened in self.open_by if opened == token]
        hardware.give_back(segment)
        segment.torn = waited
        if still and not self.lost and not waited:
            raise BrokenPromiseError(f"memory of {segment.owner} is freed while {still[0]} has it open")

    def open(self, hardware: Hardware, token: bytes) -> Segment:
        """Map another process's memory.

        Raises:
            FabricError: the driver knows no such token, or refuses it.
        """
        self.work(hardware, "open")
        segment = self.allocations.get(token)
        if segment is None:
            raise FabricError("no such token")
        key = hardware.name, token
        self.open_by[key] = self.open_by.get(key, 0) + 1
        return segment

    def close(self, hardware: Hardware, token: bytes) -> None:
        """Unmap it."""
        key = hardware.name, token
        if key not in self.open_by:
            raise BrokenPromiseError(f"{hardware.name} closes memory that it does not have open")
        self.open_by[key] -= 1
        if not self.open_by[key]:
            del self.open_by[key]

    def work(self, hardware: Hardware, step: str) -> None:
        """One call of the driver.

        Raises:
            FabricError: it fails, as each does once the device is lost.
        """
        if self.lost:
            raise FabricError("the device is lost")
        hardware.touch(Kind.GPU, step)

    def tear(self, name: str) -> None:
        """The driver takes away what a process has: who uses it gets an error from then on."""
        for segment in self.allocations.values():
            if segment.owner == name:
                segment.torn = True

    def forget(self, name: str) -> None:
        """A process has died, and the driver gives back all that it had; who has that open reads nothing good any more."""
        for token in [token for token, segment in self.allocations.items() if segment.owner == name]:
            self.allocations.pop(token).torn = True
        for key in [key for key in self.open_by if key[0] == name]:
            del self.open_by[key]
