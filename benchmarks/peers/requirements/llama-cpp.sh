#!/usr/bin/env bash
# Builds the llama.cpp of the installed bindings, with the flags that `pip install` would take
# (Release, for this processor), and its llama-server, for `serve_compare`. Needs cmake and g++.
#
#   llama-cpp.sh ENVIRONMENT
set -euo pipefail

environment=$(realpath "$1")
site=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
version=$("$environment/bin/python" -c 'from importlib.metadata import version; print(version("llama-cpp-python"))')
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT

"$environment/bin/python" -m pip download --quiet --no-deps --no-binary :all: --dest "$source" "llama-cpp-python==$version"
tar -xzf "$source"/*.tar.gz -C "$source" --strip-components 1
cmake -S "$source/vendor/llama.cpp" -B "$source/build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
  -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
  "-DCMAKE_INSTALL_RPATH=\$ORIGIN" -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON >/dev/null
mkdir -p "$site/llama_cpp/lib"
for target in llama llama-server; do
  cmake --build "$source/build" --target "$target" --parallel "$(nproc)" >/dev/null
  cp -P "$source"/build/bin/*.so* "$site/llama_cpp/lib/"
done
cp "$source/build/bin/llama-server" "$site/llama_cpp/lib/"
ln -sf "$site/llama_cpp/lib/llama-server" "$environment/bin/llama-server"
