#!/usr/bin/env bash
# torchvision and torchaudio come from PyPI built for another torch, and are not needed for text.
#
#   vllm.sh ENVIRONMENT
set -euo pipefail

"$1/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
