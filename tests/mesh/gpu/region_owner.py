"""Another process with memory on the GPU: says the tokens of its regions, and does to them what it is told.

`make SIZE` allocates and says the token, `make SIZE ORDINAL` the same on another GPU; `fill N BYTE` writes all of region N;
`peek TOKEN` opens a region of another and spoils it.
"""

import sys

from mesh.fabric.gpu.driver import driver

if __name__ == "__main__":
    devices = driver().devices
    device = devices[0]
    regions: list[tuple[int, int]] = []
    for line in sys.stdin:
        match line.split():
            case ["make", size]:
                address = device.allocate(int(size))
                regions.append((address, int(size)))
                print(device.token(address).hex(), flush=True)
            case ["make", size, ordinal]:
                print(devices[int(ordinal)].token(devices[int(ordinal)].allocate(int(size))).hex(), flush=True)
            case ["fill", number, byte]:
                address, length = regions[int(number)]
                device.write(address, memoryview(bytes([int(byte)]) * length))
                print("filled", flush=True)
            case ["peek", token]:
                opened = device.open(bytes.fromhex(token))
                data = bytearray(8)
                device.read(opened, memoryview(data))
                device.write(opened, memoryview(bytes(8)))
                print(bytes(data).hex(), flush=True)
