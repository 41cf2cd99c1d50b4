#!/bin/sh
# Tries the API of a running review server against its own description. Takes the base URL, as http://127.0.0.1:8080, of a
# server that may be filled with nonsense; SCHEMATHESIS names the program where it is not on the PATH. Written for
# schemathesis 4.32.5 (PyPI), which makes all its checks where it is not told otherwise.
set -eu
base=${1:?"give the base URL of a review server"}
here=$(dirname "$0")
exec "${SCHEMATHESIS:-schemathesis}" --config-file "$here/schemathesis.toml" run "$base/api/v1/openapi.json" \
    --url "$base" --max-examples "${EXAMPLES:-50}" --seed 1 --no-color
