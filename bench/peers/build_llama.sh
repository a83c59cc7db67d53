#!/usr/bin/env bash
# Builds llama.cpp's benchmark and quantiser for this very processor, from the sources that the
# Python package llama-cpp-python ships.
#
#     bench/peers/build_llama.sh FOLDER     # then: tina-bench cpu --llama-bin FOLDER/build/bin ...
#
# Needs python3 with pip, a C++ compiler, cmake and ninja.
set -euo pipefail

VERSION=0.3.36
folder=${1:?usage: build_llama.sh FOLDER}
mkdir -p "$folder"
cd "$folder"

archive=llama_cpp_python-$VERSION.tar.gz
[ -s "$archive" ] ||
    python3 -m pip download --quiet --no-deps --no-binary llama-cpp-python "llama-cpp-python==$VERSION"
[ -d "llama_cpp_python-$VERSION" ] || tar -xzf "$archive"

# Tests, examples, server and network are left out; `GGML_NATIVE` takes all that the processor has.
options=(-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON)
for part in LLAMA_CURL LLAMA_OPENSSL LLAMA_BUILD_TESTS LLAMA_BUILD_EXAMPLES LLAMA_BUILD_SERVER \
    LLAMA_BUILD_UI; do
    options+=("-D$part=OFF")
done
cmake -S "llama_cpp_python-$VERSION/vendor/llama.cpp" -B build -G Ninja "${options[@]}"
cmake --build build --target llama-batched-bench llama-quantize
ls build/bin/llama-batched-bench build/bin/llama-quantize
