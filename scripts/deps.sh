#!/bin/sh
# Installs the system packages Isochrone needs on Debian or Ubuntu, and says so first. Nothing is installed when all are there.
set -eu

missing=""
python=${PYTHON:-python3}
command -v "$python" >/dev/null 2>&1 || missing="$missing python3"
"$python" -c 'import ensurepip, venv' >/dev/null 2>&1 || missing="$missing python3-venv"
# The certificates let pip check whom it talks to.
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing="$missing ca-certificates"

if [ -z "$missing" ]; then
    exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "isochrone: please install:$missing (this script knows only apt-get)" >&2
    exit 1
fi
sudo=""
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null 2>&1 || { echo "isochrone: as root, run: apt-get install$missing" >&2; exit 1; }
    sudo="sudo"
fi
echo "isochrone: installing system packages:$missing"
$sudo apt-get update -qq
# shellcheck disable=SC2086  # a list of words on purpose
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
