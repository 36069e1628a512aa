"""Makes what a virtual machine boots from for `make test-guest`: Debian's kernel with its modules, and an initramfs.

    python scripts/guest.py [FOLDER]        (build/guest, or ISOCHRONE_GUEST_DIR)

The kernel's package is fetched and unpacked, not installed. The machine has no disk: the initramfs mounts this machine's own
root, read-only, under a layer of memory (tests/guest/init.sh), so that every program and the project's Python are there at the
same paths. What is there already is not made again. `tests/guest/guests.py` boots it.

Source: Linux, Documentation/filesystems/ramfs-rootfs-initramfs.rst (the archive) and Documentation/arch/x86/boot.rst (the image).
"""

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("ISOCHRONE_GUEST_DIR", ROOT / "build/guest"))
KERNELS = ("linux-image-6.12-amd64", "linux-image-amd64")
"""Packages that depend on a kernel, the better one first: before 6.12 the emulated CXL device cannot be made into memory."""
EARLY_MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")
"""What the initramfs loads: the way to this machine's root. All other modules are read from there."""
PACKERS = {b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\x00": "xz", b"\x1f\x8b\x08": "gzip"}
"""How a kernel's image may be packed: the first bytes, and the program that unpacks them from stdin."""


def main() -> int:
    """Make everything that is not there yet; the exit code of the program, 69 where the kernel cannot be had here."""
    folder = Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else FOLDER
    recipe = hashlib.sha256(b"".join(path.read_bytes() for path in (Path(__file__), ROOT / "tests/guest/init.sh"))).hexdigest()
    ready = folder / "ready"
    if ready.exists() and ready.read_text() == recipe:
        return os.EX_OK
    ready.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for step, failure in ((fetch_kernel, os.EX_UNAVAILABLE), (make_initramfs, os.EX_SOFTWARE)):
        try:
            step(folder)
        except (subprocess.CalledProcessError, OSError, LookupError) as error:
            said = (getattr(error, "stderr", None) or b"").decode().rstrip()
            print(said, f"isochrone: the virtual machine cannot be made: {error}", sep="\n", file=sys.stderr)
            return failure
    ready.write_text(recipe)
    return os.EX_OK


def fetch_kernel(folder: Path) -> None:
    """Fetch the kernel's package and unpack it: `kernel/` as it is in the package, and the image as an ELF file, `vmlinux`."""
    if (folder / "vmlinux").exists():
        return
    package = _package()
    print(f"isochrone: fetching {package} (100 MB), which is unpacked in {folder} and not installed", flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        _run("apt-get", "download", "-qq", package, folder=fresh)
        (archive,) = Path(fresh).glob("*.deb")
        shutil.rmtree(folder / "kernel", ignore_errors=True)
        _run("dpkg-deb", "--extract", str(archive), str(folder / "kernel"))
    if not (folder / "kernel/lib").exists():  # Debian 13 puts all below /usr, where depmod does not look
        (folder / "kernel/lib").symlink_to("usr/lib")
    _run(_program("depmod"), "-b", str(folder / "kernel"), _version(folder))
    (image,) = (folder / "kernel/boot").glob("vmlinuz-*")
    unpacked = folder / "vmlinux.part"
    unpacked.write_bytes(unpack(image.read_bytes()))
    unpacked.rename(folder / "vmlinux")


def unpack(image: bytes) -> bytes:
    """Return the kernel's ELF file out of its image: booted directly, it is not unpacked again by an emulated processor."""
    for magic, program in PACKERS.items():
        for found in re.finditer(re.escape(magic), image):
            # What follows the packed kernel in the image is no part of it: the program complains, after it has unpacked.
            unpacked = subprocess.run([program, "-dqc"], input=image[found.start() :], capture_output=True, check=False).stdout
            if unpacked.startswith(b"\x7fELF"):
                return unpacked
    raise LookupError(f"the kernel's image is packed with none of {', '.join(PACKERS.values())}")


def make_initramfs(folder: Path) -> None:
    """Pack busybox, the first modules and tests/guest/init.sh into `initramfs`."""
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        root = Path(fresh)
        for name in ("bin", "modules", "proc", "sys", "dev", "lower", "layer", "new"):
            (root / name).mkdir()
        shutil.copy("/bin/busybox", root / "bin/busybox")
        (root / "bin/sh").symlink_to("busybox")
        shutil.copy(ROOT / "tests/guest/init.sh", root / "init")
        (root / "init").chmod(0o755)
        order = []
        for path in _modules(folder):
            name = path.name.removesuffix(".xz")
            content = _run("xz", "-dqc", str(path)) if path.suffix == ".xz" else path.read_bytes()
            (root / "modules" / name).write_bytes(content)
            order.append(name)
        (root / "modules/order").write_text("".join(f"{name}\n" for name in order))
        names = "".join(f"{path.relative_to(root)}\n" for path in sorted(root.rglob("*")))
        archive = _run("cpio", "--create", "--format=newc", "--quiet", "--owner=+0:+0", folder=fresh, given=names.encode())
    (folder / "initramfs").write_bytes(gzip.compress(archive, compresslevel=1))


def _modules(folder: Path) -> list[Path]:
    """The files of the first modules and of all that they need, in the order of their loading."""
    paths: dict[Path, None] = {}
    for module in EARLY_MODULES:
        told = _run(_program("modprobe"), "-d", str(folder / "kernel"), "-S", _version(folder), "--show-depends", module)
        paths.update(dict.fromkeys(Path(line.split()[1]) for line in told.decode().splitlines() if line.startswith("insmod ")))
    return list(paths)


def _package() -> str:
    """The name of the newest kernel package of this machine's Debian."""
    for _ in range(2):
        for meta in KERNELS:
            told = subprocess.run(["apt-cache", "depends", meta], capture_output=True, text=True, check=False).stdout
            match = re.search(r"Depends: (linux-image-\d[^ \n]*)", told)
            if match:
                return match[1]
        print("isochrone: apt knows of no kernel; updating its lists", flush=True)
        nobody_there = [] if sys.stdin.isatty() else ["-n"]  # to type a password
        _run(*([] if os.geteuid() == 0 else ["sudo", *nobody_there]), "apt-get", "update", "-qq")
    raise LookupError(f"apt offers none of {', '.join(KERNELS)}; Debian 12 or 13 on x86-64 does")


def _version(folder: Path) -> str:
    (path,) = (folder / "kernel/lib/modules").iterdir()
    return path.name


def _program(name: str) -> str:
    """Where a system program is; not every user has those on the path."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise LookupError(f"{name} is not installed; scripts/deps.sh guest installs it")
    return found


def _run(*command: str, folder: str | None = None, given: bytes | None = None) -> bytes:
    return subprocess.run(command, cwd=folder, input=given, capture_output=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
