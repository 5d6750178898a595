#!/usr/bin/env bash
# Make the Secret with the keys that clients and administrators send, unless it is there.
#
#   create-keys.sh [NAMESPACE]
#
# Keys are made on this machine and go to the cluster alone; read one back with
#   kubectl -n NAMESPACE get secret text-generation-webui-keys -o jsonpath='{.data.api-keys}' | base64 -d
# Engines re-read them when they change: `kubectl edit secret`, no restart.
set -euo pipefail

namespace=${1:-text-generation-webui}
secret=text-generation-webui-keys

new_key() { printf 'sk-%s\n' "$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')"; }

if kubectl get secret "$secret" --namespace "$namespace" >/dev/null 2>&1; then
  echo "Secret $secret is there already: nothing changed."
  exit 0
fi
if ! kubectl get namespace "$namespace" >/dev/null 2>&1; then
  kubectl create namespace "$namespace"
fi
# Through file descriptors, so that no key shows in `ps` or lies on a disk.
kubectl create secret generic "$secret" --namespace "$namespace" \
  --from-file=api-keys=<(new_key) --from-file=admin-keys=<(new_key)
