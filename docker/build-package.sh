#!/bin/sh
# Inside a build: make the wheel of /src and lay it out below /opt/package as it will lie in
# /opt/venv: a layer of its own, of megabytes.
#
#   build-package           with the native decoder, or not at all (on x86-64)
#   build-package pure      without
set -eu
pip="/opt/pip/bin/python -m pip"

$pip install --no-cache-dir --require-hashes --only-binary :all: --requirement /tmp/locks/build.txt
$pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /tmp/wheel /src
if [ "${1:-}" != pure ] && [ "$(uname -m)" = x86_64 ] && ! ls /tmp/wheel/*linux_x86_64.whl; then
  echo "The native decoder was not compiled." >&2
  exit 1
fi
$pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --no-index \
  --prefix /opt/package /tmp/wheel/*.whl
