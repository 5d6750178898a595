#!/usr/bin/env bash
# Make the Secret with the keys of clients, gateway and administrators, or add what it lacks.
#
#   create-keys.sh [NAMESPACE]
#
#   gateway-keys   what clients show the gateway: one a line, or who may use what (docs/gateway.md)
#   api-keys       what engines and their web page take, one a line: the gateway's, and the client's
#   endpoint-key   what the gateway shows engines: the first of api-keys
#   admin-keys     what engines and gateway take for their own routes, one a line
#
# Keys are made on this machine and go to the cluster alone; read the client's back with
#   kubectl -n NAMESPACE get secret text-generation-webui-keys -o jsonpath='{.data.gateway-keys}' | base64 -d
# All but endpoint-key are re-read when they change: docs/operations.md, "A key leaks".
set -euo pipefail

namespace=${1:-text-generation-webui}
secret=text-generation-webui-keys

new_key() { printf 'sk-%s' "$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')"; }

# entry NAME: what the Secret has under this name, in base64; nothing where it has none.
entry() { kubectl get secret "$secret" --namespace "$namespace" --output "jsonpath={.data.$1}"; }

# A Secret of which the gateway's clients had the engines' keys: they keep them.
add_missing() {
  local keys first missing=()
  keys=$(entry api-keys)
  first=$(base64 -d <<<"$keys" | head -n 1)
  [ -n "$(entry gateway-keys)" ] || missing+=("\"gateway-keys\": \"$keys\"")
  if [ -z "$(entry endpoint-key)" ]; then
    case $first in "" | *:* | *"{"* | "#"*)
      echo "create-keys.sh: api-keys of $secret does not begin with a key; who may use what belongs in gateway-keys" >&2
      exit 1
      ;;
    esac
    missing+=("\"endpoint-key\": \"$(printf %s "$first" | base64 | tr -d '\n')\"")
  fi
  if [ ${#missing[@]} = 0 ]; then
    echo "Secret $secret is there already: nothing changed."
    return
  fi
  kubectl patch secret "$secret" --namespace "$namespace" --type merge \
    --patch-file <(local IFS=,; printf '{"data": {%s}}' "${missing[*]}")
}

if kubectl get secret "$secret" --namespace "$namespace" >/dev/null 2>&1; then
  add_missing
  exit 0
fi
if ! kubectl get namespace "$namespace" >/dev/null 2>&1; then
  kubectl create namespace "$namespace"
fi
client=$(new_key)
gateway=$(new_key)
# Through file descriptors, so that no key shows in `ps` or lies on a disk.
kubectl create secret generic "$secret" --namespace "$namespace" \
  --from-file=gateway-keys=<(printf '%s\n' "$client") \
  --from-file=api-keys=<(printf '%s\n' "$gateway" "$client") \
  --from-file=endpoint-key=<(printf %s "$gateway") \
  --from-file=admin-keys=<(new_key)
