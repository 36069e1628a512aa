#!/bin/sh
# Installs NVIDIA's NIXL, which `python -m benchmarks fabric` is held against, in a folder of its own. Nothing of the project that runs
# by itself uses it. It needs no GPU, and its own dependency, PyTorch, is left out: what is measured here does not need it.
#
# usage: scripts/bench_nixl.sh
# Safe to run again. Where there is no NIXL for this machine, or no network, its rows are left out of the table.
set -eu
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
folder=${BENCH_NIXL:-.venv-nixl}

rm -f "$folder/.ready"
echo "isochrone: installing NIXL into $folder (140 MB)"
if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --only-binary :all: \
    --target "$folder" nixl-cu12==1.5.1; then
    echo "isochrone: NIXL could not be installed; its rows are left out" >&2
    rm -rf "$folder"
    mkdir -p "$folder"
fi
touch "$folder/.ready"
