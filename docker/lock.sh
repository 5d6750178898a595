#!/usr/bin/env bash
# Pin what an image installs, with hashes, in docker/locks/. Needs uv (pip install uv).
#
#   docker/lock.sh                        every lock that is in docker/locks
#   docker/lock.sh cpu s3,ui              the CPU image as it is by default: no torch
#   docker/lock.sh cuda12 transformers    CUDA 12.8: the last torch that PyPI has for it
#   TORCH_INDEX=... docker/lock.sh cpu transformers,s3,ui
#
# Versions are those of constraints/, so that images run what the tests ran. PyPI is enough for all
# but `cpu` with an extra that needs torch: PyPI's torch is the CUDA build, so TORCH_INDEX must name
# PyTorch's index of CPU builds, or a mirror of it. uv's own variables (UV_INDEX, ...) work too.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH_INDEX=${TORCH_INDEX:-}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

main() {
  if [ $# -gt 0 ]; then
    lock "$1" "${2:-}"
    return
  fi
  local path target extras
  for path in docker/locks/*.txt; do
    # Each says how it was made.
    read -r target extras < <(sed -n 's|^#    docker/lock.sh ||p' "$path")
    case $target-$extras-$TORCH_INDEX in
      cpu-*transformers*-) echo "$path stays: it needs TORCH_INDEX" >&2 ;;
      *) lock "$target" "$extras" ;;
    esac
  done
}

# lock TARGET [EXTRAS]
lock() {
  local target=$1 extras=${2:-} python=3.11 pins=constraints/py311.txt
  local requirements=(pyproject.toml) options=() extra
  local constraints=$scratch/constraints.txt
  local out=docker/locks/$target${extras:+-${extras//,/-}}.txt

  case $target in
    build)
      requirements=("$scratch/build.in")
      echo "hatchling>=1.26" >"$scratch/build.in"
      cp $pins "$constraints"
      ;;
    gateway) # what tgwui_k8s.gateway and the command line import, and no more
      requirements=("$scratch/gateway.in")
      printf '%s\n' click httptools msgspec prometheus-client pyyaml redis rich-click starlette \
        uvicorn uvloop >"$scratch/gateway.in"
      cp $pins "$constraints"
      ;;
    cpu)
      if [ -n "$TORCH_INDEX" ]; then
        options+=(--index "$TORCH_INDEX" --index-strategy unsafe-best-match)
      fi
      sed 's/^torch==.*/&+cpu/' $pins >"$constraints"
      ;;
    cuda12) # torch 2.11 and later need CUDA 13
      { grep -v '^torch==\|^triton==' $pins; echo "torch<2.11"; } >"$constraints"
      ;;
    cuda13)
      cp $pins "$constraints"
      ;;
    neuron) # Python and packages are the Neuron image's; what we add must fit its Transformers
      python=3.10
      requirements+=("$scratch/neuron.in")
      printf '%s\n' "transformers==4.48.*" "numpy<2" >"$scratch/neuron.in"
      : >"$constraints"
      options+=(--no-emit-package transformers --no-emit-package numpy)
      ;;
    *)
      echo "unknown target '$target': build, gateway, cpu, cuda12, cuda13 or neuron" >&2
      return 2
      ;;
  esac
  for extra in ${extras//,/ }; do
    options+=(--extra "$extra")
  done

  echo "$out"
  uv pip compile --quiet --no-config --generate-hashes --no-emit-index-url \
    --python-version $python --universal --no-annotate --constraints "$constraints" \
    --custom-compile-command "docker/lock.sh $target${extras:+ $extras}" \
    ${options[@]+"${options[@]}"} --output-file "$out" "${requirements[@]}"
}

main "$@"
