#!/usr/bin/env bash
# From an empty AWS account to a cluster that k8s/overlays can be applied to.
#
#   install.sh                       all steps of the list below marked (*)
#   install.sh STEP...               these steps
#   install.sh --skip kong,istio     all marked steps but these
#   install.sh --dry-run ...         print every command that would change something, run none
#   install.sh --list                the steps
#
# Every step may be repeated: what is there is left or brought to the version named here.
# Needs aws, eksctl, kubectl, helm and curl. REGION and ACCOUNT come from the AWS configuration unless
# they are set.
set -euo pipefail
cd "$(dirname "$0")"

CLUSTER=text-generation-webui
KARPENTER=1.14.1
GATEWAY_API=1.6.1
INFERENCE_EXTENSION=1.6.0
ISTIO=1.30.3

#     step              what                                              default
STEPS="karpenter-iam    roles and queue for Karpenter                     *
cluster                 the EKS cluster, its add-ons and node groups      *
storage                 the EFS file system and both StorageClasses       *
load-balancers          AWS Load Balancer Controller                      *
karpenter               machines on demand                                *
nvidia                  device plugin for GPUs                            *
nvidia-shared           the same, each card counting as two
neuron                  device plugin for Inferentia and Trainium         *
monitoring              Prometheus, Alertmanager, Grafana, the adapter    *
logging                 Loki on S3, Alloy                                 *
gateway-api             CRDs of the Gateway API and its inference part    *
kong                    Kong Ingress Controller                           *
istio                   Istio with its ingress, Kiali, Jaeger
keda                    KEDA
kserve                  KServe without Knative
lws                     LeaderWorkerSet
kuberay                 KubeRay operator
argo                    Argo Workflows
jupyterhub              JupyterHub
kubesphere              KubeSphere
kubecost                Kubecost
keys                    the Secret with the API keys                      *"

dry_run=false

fail() { echo "install.sh: $*" >&2; exit 2; }
say() { printf '\n=== %s\n' "$*"; }
run() {
  printf '+ %s\n' "$*"
  if ! $dry_run; then "$@"; fi
}

# Who and where we are. A dry run does without.
find_account() {
  ACCOUNT=${ACCOUNT:-$(aws sts get-caller-identity --query Account --output text 2>/dev/null || true)}
  REGION=${REGION:-$(aws configure get region 2>/dev/null || true)}
  if $dry_run; then
    ACCOUNT=${ACCOUNT:-ACCOUNT} REGION=${REGION:-REGION}
  fi
  [ -n "$ACCOUNT" ] || fail "no AWS account: log in (aws configure, aws sso login) or set ACCOUNT"
  [ -n "$REGION" ] || fail "no AWS region: set REGION"
  export AWS_REGION=$REGION
}

# render FILE: the file with its placeholders filled in.
render() {
  sed -e "s/ACCOUNT/$ACCOUNT/g" -e "s/REGION/$REGION/g" \
    -e "s/BUCKET/text-generation-webui-loki-$ACCOUNT/g" \
    -e "s/FILE_SYSTEM/${FILE_SYSTEM:-FILE_SYSTEM}/g" "$1"
}

# apply_rendered FILE
apply_rendered() {
  local rendered
  rendered=$(mktemp)
  render "$1" >"$rendered"
  run kubectl apply -f "$rendered"
  rm -f "$rendered"
}

# release NAME NAMESPACE CHART VERSION [VALUES] [FLAGS...]: install or bring to this version.
release() {
  local name=$1 namespace=$2 chart=$3 version=$4 values=${5:-} rendered=
  shift 4
  [ $# -eq 0 ] || shift
  local flags=("$@")
  if [ -n "$values" ]; then
    rendered=$(mktemp)
    render "$values" >"$rendered"
    flags+=(--values "$rendered")
  fi
  run helm upgrade --install "$name" "$chart" --version "$version" \
    --namespace "$namespace" --create-namespace --wait --timeout 15m "${flags[@]}"
  [ -z "$rendered" ] || rm -f "$rendered"
}

# bucket NAME: an S3 bucket, unless it is there.
bucket() {
  if ! aws s3api head-bucket --bucket "$1" 2>/dev/null; then
    run aws s3 mb "s3://$1" --region "$REGION"
  fi
}

step_karpenter-iam() {
  local template url
  template=$(mktemp)
  url=https://raw.githubusercontent.com/aws/karpenter-provider-aws/v$KARPENTER/website/content/en/preview/getting-started/getting-started-with-karpenter/cloudformation.yaml
  run curl -fsSL -o "$template" "$url"
  run aws cloudformation deploy --stack-name "Karpenter-$CLUSTER" --template-file "$template" \
    --capabilities CAPABILITY_NAMED_IAM --parameter-overrides "ClusterName=$CLUSTER" \
    --no-fail-on-empty-changeset
  rm -f "$template"
}

step_cluster() {
  if aws eks describe-cluster --name "$CLUSTER" >/dev/null 2>&1; then
    echo "The cluster $CLUSTER is there already."
  else
    local rendered
    rendered=$(mktemp)
    render cluster.yaml >"$rendered"
    # The steps nvidia and neuron install the plugins; Helm takes no object over that eksctl has made.
    run eksctl create cluster --install-nvidia-plugin=false --install-neuron-plugin=false -f "$rendered"
    rm -f "$rendered"
  fi
  run aws eks update-kubeconfig --name "$CLUSTER" --region "$REGION"
}

# One file system with a mount target in each of the cluster's subnets, open to the cluster alone.
step_storage() {
  local group subnet vpc cidr
  FILE_SYSTEM=$(aws efs describe-file-systems --creation-token "$CLUSTER" \
    --query 'FileSystems[0].FileSystemId' --output text 2>/dev/null || echo None)
  if [ "$FILE_SYSTEM" = None ]; then
    run aws efs create-file-system --creation-token "$CLUSTER" --encrypted \
      --throughput-mode elastic --performance-mode generalPurpose --tags "Key=Name,Value=$CLUSTER"
    if $dry_run; then
      FILE_SYSTEM=FILE_SYSTEM
    else
      FILE_SYSTEM=$(aws efs describe-file-systems --creation-token "$CLUSTER" \
        --query 'FileSystems[0].FileSystemId' --output text)
      until [ "$(aws efs describe-file-systems --file-system-id "$FILE_SYSTEM" \
        --query 'FileSystems[0].LifeCycleState' --output text)" = available ]; do sleep 3; done
    fi
  fi
  vpc=$(aws eks describe-cluster --name "$CLUSTER" \
    --query cluster.resourcesVpcConfig.vpcId --output text 2>/dev/null || echo VPC)
  cidr=$(aws ec2 describe-vpcs --vpc-ids "$vpc" \
    --query 'Vpcs[0].CidrBlock' --output text 2>/dev/null || echo CIDR)
  group=$(aws ec2 describe-security-groups --output text --query 'SecurityGroups[0].GroupId' \
    --filters "Name=group-name,Values=$CLUSTER-efs" "Name=vpc-id,Values=$vpc" 2>/dev/null || echo None)
  if [ "$group" = None ]; then
    run aws ec2 create-security-group --group-name "$CLUSTER-efs" --vpc-id "$vpc" \
      --description "NFS from the cluster"
    group=GROUP
    if ! $dry_run; then
      group=$(aws ec2 describe-security-groups --output text --query 'SecurityGroups[0].GroupId' \
        --filters "Name=group-name,Values=$CLUSTER-efs" "Name=vpc-id,Values=$vpc")
    fi
    run aws ec2 authorize-security-group-ingress --group-id "$group" --protocol tcp --port 2049 \
      --cidr "$cidr"
  fi
  local targets
  targets=$(aws efs describe-mount-targets --file-system-id "$FILE_SYSTEM" \
    --query 'MountTargets[].AvailabilityZoneId' --output text 2>/dev/null || true)
  # One subnet of each zone: a second mount target in a zone is refused.
  while read -r subnet zone; do
    case " $targets " in *"$zone"*) continue ;; esac
    targets="$targets $zone"
    run aws efs create-mount-target --file-system-id "$FILE_SYSTEM" --subnet-id "$subnet" \
      --security-groups "$group"
  done < <(aws ec2 describe-subnets --filters "Name=vpc-id,Values=$vpc" \
    --query 'Subnets[].[SubnetId,AvailabilityZoneId]' --output text 2>/dev/null || echo "SUBNET ZONE")
  apply_rendered storage-classes.yaml
}

step_load-balancers() {
  release aws-load-balancer-controller kube-system aws-load-balancer-controller 3.5.0 \
    values/aws-load-balancer-controller.yaml --repo https://aws.github.io/eks-charts
}

step_karpenter() {
  release karpenter kube-system oci://public.ecr.aws/karpenter/karpenter "$KARPENTER" \
    values/karpenter.yaml
}

step_nvidia() {
  release nvidia-device-plugin kube-system nvidia-device-plugin 0.20.0 values/nvidia.yaml \
    --repo https://nvidia.github.io/k8s-device-plugin
}

step_nvidia-shared() {
  release nvidia-device-plugin kube-system nvidia-device-plugin 0.20.0 values/nvidia-shared.yaml \
    --repo https://nvidia.github.io/k8s-device-plugin
}

step_neuron() {
  release neuron kube-system oci://public.ecr.aws/neuron/neuron-helm-chart 1.1.2 values/neuron.yaml
}

step_monitoring() {
  release monitoring monitoring kube-prometheus-stack 88.5.3 values/kube-prometheus-stack.yaml \
    --repo https://prometheus-community.github.io/helm-charts
  release prometheus-adapter monitoring prometheus-adapter 5.3.0 values/prometheus-adapter.yaml \
    --repo https://prometheus-community.github.io/helm-charts
}

step_logging() {
  bucket "text-generation-webui-loki-$ACCOUNT"
  release loki logging loki 7.3.0 ../components/logging/values-loki.yaml \
    --repo https://grafana.github.io/helm-charts
  release alloy logging alloy 1.11.1 ../components/logging/values-alloy.yaml \
    --repo https://grafana.github.io/helm-charts
}

step_gateway-api() {
  run kubectl apply --server-side -f \
    "https://github.com/kubernetes-sigs/gateway-api/releases/download/v$GATEWAY_API/standard-install.yaml"
  run kubectl apply --server-side -f \
    "https://github.com/kubernetes-sigs/gateway-api-inference-extension/releases/download/v$INFERENCE_EXTENSION/manifests.yaml"
}

step_kong() {
  release kong kong ingress 0.24.0 values/kong.yaml --repo https://charts.konghq.com
}

step_istio() {
  local charts=https://istio-release.storage.googleapis.com/charts
  release istio-base istio-system base "$ISTIO" "" --repo "$charts"
  release istio-cni istio-system cni "$ISTIO" "" --repo "$charts"
  release istiod istio-system istiod "$ISTIO" values/istiod.yaml --repo "$charts"
  release istio-ingress istio-ingress gateway "$ISTIO" values/istio-ingress.yaml --repo "$charts"
  release jaeger observability jaeger 4.11.1 values/jaeger.yaml \
    --repo https://jaegertracing.github.io/helm-charts
  release kiali istio-system kiali-server 2.29.0 values/kiali.yaml \
    --repo https://kiali.org/helm-charts
}

step_keda() {
  release keda keda keda 2.20.2 "" --repo https://kedacore.github.io/charts
}

step_kserve() {
  release cert-manager cert-manager cert-manager v1.20.2 "" --repo https://charts.jetstack.io \
    --set crds.enabled=true
  release kserve-crd kserve oci://ghcr.io/kserve/charts/kserve-crd v0.20.0
  release kserve kserve oci://ghcr.io/kserve/charts/kserve-resources v0.20.0 values/kserve.yaml
}

step_lws() {
  release lws lws-system oci://registry.k8s.io/lws/charts/lws 0.9.0
}

step_kuberay() {
  release kuberay-operator kuberay kuberay-operator 1.6.2 "" \
    --repo https://ray-project.github.io/kuberay-helm
}

step_argo() {
  release argo-workflows argo argo-workflows 2.0.1 ../examples/argo-workflows/values.yaml \
    --repo https://argoproj.github.io/argo-helm
}

step_jupyterhub() {
  release jupyterhub jupyterhub jupyterhub 4.3.3 ../examples/jupyterhub/values.yaml \
    --repo https://hub.jupyter.org/helm-chart
}

step_kubesphere() {
  release ks-core kubesphere-system https://charts.kubesphere.io/main/ks-core-1.1.2.tgz 1.1.2 \
    values/kubesphere.yaml
}

step_kubecost() {
  release kubecost kubecost oci://public.ecr.aws/kubecost/cost-analyzer 2.3.3 values/kubecost.yaml
}

step_keys() {
  run ../create-keys.sh
}

names() { awk '{print $1}' <<<"$STEPS"; }
default_names() { awk '$NF == "*" {print $1}' <<<"$STEPS"; }
is_step() { names | grep -qxF -- "$1"; }

main() {
  local skip="" chosen=() step
  while [ $# -gt 0 ]; do
    case $1 in
      --dry-run) dry_run=true ;;
      --list) echo "$STEPS"; return ;;
      --skip) [ $# -gt 1 ] || fail "--skip needs a list of steps"; skip=$2; shift ;;
      --help | -h) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' install.sh; return ;;
      -*) fail "there is no option $1" ;;
      *) chosen+=("$1") ;;
    esac
    shift
  done
  [ ${#chosen[@]} -gt 0 ] || mapfile -t chosen < <(default_names)
  for step in "${chosen[@]}" ${skip//,/ }; do
    is_step "$step" || fail "there is no step '$step'; --list shows them"
  done
  find_account
  for step in "${chosen[@]}"; do
    case ",$skip," in *",$step,"*) continue ;; esac
    say "$step"
    "step_$step"
  done
}

main "$@"
