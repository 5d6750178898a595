#!/usr/bin/env bash
# Removes torchvision, which comes built for another torch, breaks the exporter's imports, and is not
# needed for text.
#
#   openvino.sh ENVIRONMENT
set -euo pipefail
"$1/bin/python" -m pip uninstall --quiet --yes torchvision
