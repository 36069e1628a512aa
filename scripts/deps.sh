#!/bin/sh
# Installs the system packages Isochrone needs on Debian or Ubuntu, and says so first. Nothing is installed when all are there.
# Where they cannot be installed the last line says why, and the exit status is 69.
#
# usage: scripts/deps.sh [guest]
#   guest   and what `make test-guest` needs: an emulator, and the programs that set up RDMA, CXL memory and links
set -eu

missing=""
# need PACKAGE FILE...: the package is missing where one of its files is.
need() {
    package=$1
    shift
    for file in "$@"; do
        [ -e "$file" ] || command -v "$file" >/dev/null 2>&1 || { missing="$missing $package"; return; }
    done
}

python=${PYTHON:-python3}
need python3 "$python"
"$python" -c 'import ensurepip, venv' >/dev/null 2>&1 || missing="$missing python3-venv"
# The certificates let pip check whom it talks to.
need ca-certificates /etc/ssl/certs/ca-certificates.crt
case "${1:-}" in
    "") ;;
    guest)
        PATH="$PATH:/usr/sbin:/sbin"
        # The machine and what boots it.
        need qemu-system-x86 qemu-system-x86_64
        need busybox-static /bin/busybox
        need cpio cpio
        need kmod modprobe depmod
        need xz-utils xz
        need zstd zstd
        # Links, RDMA and CXL memory; whoever builds against libibverbs needs its headers and a compiler.
        need iproute2 ip tc rdma
        need rdma-core /lib/udev/rules.d/60-rdma-persistent-naming.rules
        need libibverbs-dev /usr/include/infiniband/verbs.h
        need ibverbs-providers /etc/libibverbs.d/rxe.driver
        need ibverbs-utils ibv_rc_pingpong
        need gcc gcc
        need libc6-dev /usr/include/stdio.h
        need ndctl ndctl cxl
        need daxctl daxctl
        need pciutils lspci
        need numactl numactl
        ;;
    *) echo "isochrone: unknown part '$1'; known is guest" >&2; exit 2 ;;
esac

if [ -z "$missing" ]; then
    exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "isochrone: please install:$missing (this script knows only apt-get)" >&2
    exit 69
fi
sudo=""
if [ "$(id -u)" -ne 0 ]; then
    sudo="sudo"
    [ -t 0 ] || sudo="sudo -n" # nobody is there to type a password
    $sudo true >/dev/null 2>&1 || { echo "isochrone: as root, run: apt-get install$missing" >&2; exit 69; }
fi
echo "isochrone: installing system packages:$missing"
impossible() {
    echo "isochrone: apt-get cannot install$missing (see above)" >&2
    exit 69
}
# An update that fails in part leaves lists that may be good enough.
$sudo apt-get update -qq || echo "isochrone: apt-get cannot update its lists; going on with those that are there" >&2
# shellcheck disable=SC2086  # a list of words on purpose
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing || impossible
