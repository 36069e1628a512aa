#!/bin/sh
# Trains the small text model again, in an environment of its own: about half an hour on one core, 200 MB of packages.
set -eu

cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
venv=${TRAIN_VENV:-build/train-venv}

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
# The processor-only build of torch: the model is too small to want a GPU, and the CUDA packages are several gigabytes.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --extra-index-url https://download.pytorch.org/whl/cpu 'torch==2.13.0+cpu' numpy onnx ||
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy onnx
mkdir -p build
exec "$venv/bin/python" scripts/train_text_model.py scripts/data/jargon-corpus.txt.gz mesh/engines/data/tiny-text.onnx "$@"
