#!/bin/bash
# Runs in a guest: makes the CXL device's persistent memory into /dev/dax0.0, and writes that name last.
set -euo pipefail
for module in cxl_acpi cxl_pci cxl_port cxl_mem cxl_pmem nd_pmem dax_pmem device_dax; do modprobe "$module"; done
udevless() { for _ in $(seq 100); do "$@" >/dev/null 2>&1 && return; sleep 0.2; done; echo "never: $*" >&2; return 1; }
udevless test -e /sys/bus/cxl/devices/mem0
decoder=$(basename "$(dirname "$(ls /sys/bus/cxl/devices/root0/decoder0.*/target_list | head -n 1)")")
cxl create-region -m -t pmem -d "$decoder" -w 1 -g 256 mem0 >&2
udevless test -e /sys/bus/nd/devices/region0
ndctl create-namespace -m devdax -M mem -a 4k -f >&2
udevless test -e /dev/dax0.0
echo /dev/dax0.0
