#!/usr/bin/env bash
# The real thing, for whoever has network: real checkouts, patched, run, asked, and taken back.
#
#   patches/test_upstream.sh [TAG ...]          default: the tags that patches/README.md names
#
# For every tag: clone, ask the questions of patches/README.md unpatched (they must fail), patch,
# verify (they must pass), unpatch, and look whether git sees a difference (it must not).
#
#   PYTHON_<TAG>   interpreter with that version's requirements and this package, such as
#                  PYTHON_v4_7_3=/opt/v4/bin/python; without it one is made, from a package index
#                  alone
#   SOURCES        folder with checkouts named by tag, instead of cloning
#   NEURON=1       also stream a text through the Neuron loader on tests/neuron_standin (needs
#                  torch and Transformers in the interpreter)
set -euo pipefail

repository=https://github.com/oobabooga/text-generation-webui
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
chmod 755 "$work" # the servers run as nobody where this is root
trap 'rm -rf "$work"' EXIT
if [ $# -eq 0 ]; then set -- snapshot-2023-12-24 snapshot-2024-01-28 v4.7.3; fi

# The lines of upstream's requirements that serve text on a stub: no wheels from GitHub (Gradio and
# llama.cpp of v4), nothing that only quantizes or trains.
requirements() {
  if [ -e "$1/requirements/portable" ]; then
    cat "$1/requirements/portable/requirements.txt" && echo Pillow # came with Gradio
  else
    cat "$1/requirements_cpu_only.txt" "$1/extensions/openai/requirements.txt"
  fi | grep -Ev '^https:|^#|^(bitsandbytes|exllamav2|hqq|lm_eval|optimum|tensorboard|wandb)'
}

# An environment as it was in the month of the tag: what upstream leaves open has moved on since.
make_environment() {
  local root=$1 environment=$2 until
  until=$(date -u -d "$(git -C "$root" log -1 --format=%cI) + 30 days" +%FT%TZ)
  python3 -m venv "$environment"
  "$environment/bin/python" -m pip install --quiet --upgrade 'pip>=26'
  if [ ! -e "$root/requirements/portable" ]; then # its installer brought torch
    "$environment/bin/python" -m pip install --quiet --constraint "$here/constraints/py311.txt" torch
  fi
  requirements "$root" >"$environment/requirements.txt"
  "$environment/bin/python" -m pip install --quiet --uploaded-prior-to "$until" \
    --requirement "$environment/requirements.txt"
  if [ ! -e "$work/wheel" ]; then
    "$environment/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$work/wheel" "$here"
  fi
  "$environment/bin/python" -m pip install --quiet --no-deps "$work"/wheel/*.whl
}

tool() { "${PYTHON:-$here/.venv/bin/python}" -m tgwui_k8s upstream "$@"; }

for tag in "$@"; do
  echo "== $tag"
  root=$work/$tag
  if [ -n "${SOURCES:-}" ]; then
    git clone --quiet "$SOURCES/$tag" "$root"
  else
    git clone --quiet --depth 1 --branch "$tag" "$repository" "$root"
  fi
  variable=PYTHON_$(tr -c 'a-zA-Z0-9\n' _ <<<"$tag")
  python=${!variable:-}
  if [ -z "$python" ]; then
    make_environment "$root" "$work/venv-$tag"
    python=$work/venv-$tag/bin/python
  fi
  echo "-- unpatched"
  (cd "$here" && "${PYTHON:-.venv/bin/python}" -m tests.upstream.ask "$root" "$python" --must-fail)
  tool status "$root"
  tool patch "$root"
  tool patch "$root" # again: no harm
  tool verify "$root" --python "$python"
  if [ -n "${NEURON:-}" ]; then
    (cd "$here" && "${PYTHON:-.venv/bin/python}" -m tests.upstream.ask_neuron "$root" "$python")
  fi
  tool unpatch "$root"
  test -z "$(git -C "$root" status --porcelain --ignored)"
  echo "-- unpatched again: git sees no difference"
done
