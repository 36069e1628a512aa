#!/bin/sh
# Installs what `python -m benchmarks gateway` is held against, apart from what the project runs on: the LiteLLM proxy and
# vllm-router, each in an environment of its own, since their dependencies are not ours. Nothing of the project uses them.
#
# usage: scripts/bench_proxies.sh
# Safe to run again, also after a run that was interrupted.
set -eu
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
folder=${BENCH_PROXIES:-.venv-proxies}

PYTHON="$python" scripts/deps.sh
rm -f "$folder/.ready"
# Pinned: a release of LiteLLM before this one (1.107.0) was not its makers' own.
for package in "litellm[proxy]==1.108.7" "vllm-router==0.1.17"; do
    name=${package%%[\[=]*}
    if ! "$folder/$name/bin/python" -m pip --version >/dev/null 2>&1; then
        echo "isochrone: creating $folder/$name"
        "$python" -m venv --clear "$folder/$name"
    fi
    echo "isochrone: installing $package"
    "$folder/$name/bin/python" -m pip install --quiet --disable-pip-version-check "$package"
done
touch "$folder/.ready"
