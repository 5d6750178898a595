#!/usr/bin/env bash
# Build images and push them to ECR, or to another registry.
#
#   docker/build-and-push.sh                      all of ours: cpu cuda neuron gateway
#   docker/build-and-push.sh cuda gateway         some
#   docker/build-and-push.sh upstream             text-generation-webui itself, for k8s/overlays/upstream
#   docker/build-and-push.sh --dry-run cpu        only say what would be done
#   docker/build-and-push.sh --registry registry.example.com/team cpu
#
# An image gets two tags, such as 0.1.0-cuda and 0.1.0-cuda-1a2b3c4d5e6f (version and git revision).
# Run again, it builds from the cache and pushes nothing that is there. The last lines on stdout are
# the digests, one image a line: put those into k8s/.
#
# Options:
#   --repository NAME      text-generation-webui
#   --registry HOST[/PATH] push there with the engine's own login; no AWS command is run
#   --region, --account    ECR's; default: AWS_REGION, AWS_DEFAULT_REGION or the profile's region,
#                          and the account of the caller
#   --engine NAME          docker, podman or buildah; default: the first that is installed
#   --build-arg NAME=VALUE handed to the build (repeatable), such as CUDA=12
#   --scan-on-push, --immutable-tags      for a repository that is made
#   --no-push              build only
#   --push-option OPTION   handed to the push (repeatable), such as --tls-verify=false
set -euo pipefail
cd "$(dirname "$0")/.."

repository=text-generation-webui
registry="" region="" account="" engine=""
scan=false mutability=MUTABLE push=true dry=false
targets=() build_options=() push_options=()

main() {
  parse "$@"
  engine=${engine:-$(find_engine)}
  version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' tgwui_k8s/__init__.py)
  revision=$(git rev-parse --short=12 HEAD)
  if [ -n "$(git status --porcelain --untracked-files=no)" ]; then
    revision=$revision-dirty
  fi

  if [ "$push" = true ] && [ -z "$registry" ]; then
    prepare_ecr
  fi
  local name=${registry:+$registry/}$repository target
  for target in "${targets[@]}"; do
    build "$name" "$target"
  done
  if [ "$push" = true ]; then
    for target in "${targets[@]}"; do
      publish "$name" "$target"
    done
  fi
}

parse() {
  while [ $# -gt 0 ]; do
    case $1 in
      --repository) repository=$(value "$@"); shift ;;
      --registry) registry=$(value "$@"); shift ;;
      --region) region=$(value "$@"); shift ;;
      --account) account=$(value "$@"); shift ;;
      --engine) engine=$(value "$@"); shift ;;
      --build-arg) build_options+=(--build-arg "$(value "$@")"); shift ;;
      --push-option) push_options+=("$(value "$@")"); shift ;;
      --scan-on-push) scan=true ;;
      --immutable-tags) mutability=IMMUTABLE ;;
      --no-push) push=false ;;
      --dry-run) dry=true ;;
      -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "$0"; exit 0 ;;
      cpu | cuda | neuron | gateway | upstream) targets+=("$1") ;;
      *) fail "unknown argument '$1'; see --help" ;;
    esac
    shift
  done
  if [ ${#targets[@]} -eq 0 ]; then
    targets=(cpu cuda neuron gateway)
  fi
}

value() {
  [ $# -ge 2 ] || fail "$1 wants a value"
  printf '%s' "$2"
}

find_engine() {
  local candidate
  for candidate in docker podman buildah; do
    if command -v "$candidate" >/dev/null; then
      echo "$candidate"
      return
    fi
  done
  fail "none of docker, podman and buildah is installed"
}

# ------------------------------------------------------------------------------------ the registry

prepare_ecr() {
  command -v aws >/dev/null || fail "the AWS command line is not installed; or name a --registry"
  region=${region:-${AWS_REGION:-${AWS_DEFAULT_REGION:-$(aws configure get region || true)}}}
  [ -n "$region" ] || fail "no region: set AWS_REGION, or use --region"
  account=${account:-$(aws sts get-caller-identity --query Account --output text)}
  registry=$account.dkr.ecr.$region.amazonaws.com

  if ! aws ecr describe-repositories --region "$region" --registry-id "$account" \
    --repository-names "$repository" >/dev/null 2>&1; then
    run aws ecr create-repository --region "$region" --repository-name "$repository" \
      --image-scanning-configuration "scanOnPush=$scan" --image-tag-mutability "$mutability" \
      --no-cli-pager >&2
  fi
  if [ "$dry" = true ]; then
    echo "+ aws ecr get-login-password | $engine login --password-stdin $registry" >&2
  else
    aws ecr get-login-password --region "$region" |
      "$engine" login --username AWS --password-stdin "$registry" >&2
  fi
}

# ---------------------------------------------------------------------------------- build and push

# build NAME TARGET
build() {
  local options=(
    --file "docker/Dockerfile.$2"
    --tag "$1:$version-$2" --tag "$1:$version-$2-$revision"
    --build-arg "VERSION=$version" --build-arg "REVISION=$revision"
    --build-arg "SOURCE=$(source_url)"
    ${build_options[@]+"${build_options[@]}"}
  )
  if [ "$engine" != docker ]; then
    options+=(--format docker) # OCI's own has no HEALTHCHECK
  fi
  run "$engine" build "${options[@]}" . >&2
}

# publish NAME TARGET: both tags. A revision's tag never moves; the version's does, if it may.
publish() {
  local name=$1 tag=$version-$2 digest
  digest=$(ecr_digest "$tag-$revision")
  if [ -n "$digest" ] && [ "${revision%-dirty}" = "$revision" ]; then
    echo "$name:$tag-$revision is there already" >&2
    echo "$name@$digest"
    return
  fi
  push_tag "$name:$tag-$revision"
  if ! push_tag "$name:$tag"; then
    [ -n "$(ecr_digest "$tag")" ] || fail "cannot push $name:$tag"
    echo "$name:$tag stays what it was: the repository's tags are immutable" >&2
  fi
  [ "$dry" = true ] || digest_of "$name:$tag-$revision"
}

# ecr_digest TAG: of an image that ECR has; nothing for one that it has not, or another registry
ecr_digest() {
  [ -n "$account" ] || return 0
  aws ecr describe-images --region "$region" --registry-id "$account" \
    --repository-name "$repository" --image-ids "imageTag=$1" \
    --query 'imageDetails[0].imageDigest' --output text 2>/dev/null || true
}

# push_tag IMAGE
push_tag() {
  case $engine in
    docker) run docker push --quiet ${push_options[@]+"${push_options[@]}"} "$1" >&2 ;;
    *) run "$engine" push --digestfile "$(digest_file "$1")" \
      ${push_options[@]+"${push_options[@]}"} "$1" >&2 ;;
  esac
}

# digest_of IMAGE: NAME@sha256:..., as the registry knows it
digest_of() {
  case $engine in
    docker) docker inspect --format '{{index .RepoDigests 0}}' "$1" ;;
    *) echo "${1%:*}@$(cat "$(digest_file "$1")")" ;;
  esac
}

digest_file() {
  printf '%s' "$scratch/$(printf '%s' "$1" | tr '/:' '__')"
}

# --------------------------------------------------------------------------------------- the rest

source_url() {
  # Without the user and password that may be in it.
  git config --get remote.origin.url 2>/dev/null | sed 's#//[^/@]*@#//#' || true
}

# Do it, or with --dry-run say so.
run() {
  if [ "$dry" = true ]; then
    echo "+ $*" >&2
  else
    "$@"
  fi
}

fail() {
  echo "build-and-push: $1" >&2
  exit 2
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
main "$@"
