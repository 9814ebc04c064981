#!/usr/bin/env bash
# Makes the model files of the comparison, once: random weights in two shapes, in every format that is compared, and a link
# to SmolLM2. Needs setup.sh to have run. About 2.5 GB.
#
#   PEERS_DIR  as for setup.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir="${PEERS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/ernie-peers}"
mkdir -p "$dir/models"
cd "$dir/models"

# Writes to another name first, so that a file that was cut short is never taken for a whole one.
make() {
  [ -f "$1" ] || { echo "== $1" >&2; "${@:2}" "$1.part" >&2 && mv "$1.part" "$1"; }
}
# llama-quantize takes a name that begins with a digit for the number of a format, so names have their folder before them.
quantize() { "$dir/llama-build/bin/llama-quantize" "$PWD/$2" "$PWD/$3" "$1" "$(nproc)" >"$3.log" 2>&1 || { tail -3 "$3.log" >&2; return 1; }; rm "$3.log"; }

for shape in 0.3b moe-mid; do
  make "$shape-bf16.gguf" "$dir/venv/bin/python" "$here/make_gguf.py" --shape "$shape" --out
  for format in Q8_0 Q4_0 Q4_K_M; do
    make "$shape-$format.gguf" quantize "$format" "$shape-bf16.gguf"
  done
done
find "$dir/venv" -name 'SmolLM2-135M-Instruct*.gguf' -exec ln -sf {} smollm2-Q4_1.gguf \;
ls -lL >&2
