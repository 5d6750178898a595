#!/bin/sh
# Inside a build: install the lock of TARGET with EXTRAS into /opt/venv. Every file is checked by
# its hash, and nothing is compiled.
#
#   install-locked TARGET EXTRAS [INDEX]      INDEX: a wheel index beside PyPI
set -eu
target=$1 extras=$2 index=${3:-}

lock=/tmp/locks/$target$(printf '%s' "${extras:+-$extras}" | tr ',' '-').txt
if [ ! -f "$lock" ]; then
  echo "There is no lock docker/locks/$(basename "$lock"): make it with" >&2
  echo "    docker/lock.sh $target '$extras'" >&2
  exit 1
fi
/opt/pip/bin/python -m pip --python /opt/venv/bin/python install --no-cache-dir --require-hashes \
  --only-binary :all: --no-deps ${index:+--extra-index-url "$index"} --requirement "$lock"
