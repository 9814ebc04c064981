#!/usr/bin/env bash
# What this program writes, others read: tiny models that it trains go to `transformers`, `peft` and llama.cpp, which must give the same numbers.
#
#   .ci/round_trips/run.sh ERNIE EXAMPLE      # the program, and the example tiny_checkpoints of ernie-train
#
# Packages are kept outside the repository. Where they cannot be had the part is skipped, aloud; what is there and fails, fails.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
ernie=$(realpath "$1") example=$(realpath "$2")
setup="$here/../../bench/peers/setup.sh"
export PEERS_DIR="${PEERS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/ernie-peers}"
python="$PEERS_DIR/venv/bin/python"
export LLAMA_CPP_LIB_PATH="$PEERS_DIR/llama-shared/bin"
export TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1 PYTHONWARNINGS=ignore

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$example" "$work"

if "$python" -c 'import peft, torch, compressed_tensors' 2>/dev/null || PEERS="torch peft" "$setup" >"$work/setup" 2>&1; then
  "$python" "$here/../../crates/ernie-train/tests/transformers/check.py" "$work" >"$work/result.json" || { cat "$work/result.json"; exit 1; }
  "$python" "$here/integers.py" "$ernie" "$work" wide
  echo "transformers and peft: $(grep -c '"good": true' "$work/result.json") tiny models have the same logits"
else
  tail -3 "$work/setup"
  echo "skipped: transformers and peft cannot be had here"
fi

if "$python" -c 'import llama_cpp' 2>/dev/null || PEERS=llamapython "$setup" >"$work/setup" 2>&1; then
  "$python" "$here/greedy.py" "$ernie" "$work"/dense "$work"/moe "$work"/moe-mtp "$work"/moe-lora
else
  tail -3 "$work/setup"
  echo "skipped: llama.cpp cannot be had here"
fi
