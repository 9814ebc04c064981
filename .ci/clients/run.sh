#!/usr/bin/env bash
# Real clients against a running server: the openai package, lm-evaluation-harness, and the chat page in a browser.
#
#   .ci/clients/run.sh ERNIE MODEL      # the program, and a model that has a tokenizer and chats
#
# Packages are kept in a folder of their own. Where one cannot be had (no registry, no browser) that part is skipped, aloud; what is
# there and fails, fails.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
ernie=$(realpath "$1") model=$(realpath "$2")
cache="${XDG_CACHE_HOME:-$HOME/.cache}/ernie-ci"
venv="$cache/clients-$(sha256sum "$here/requirements.txt" | cut -c1-12)"
if [ ! -e "$venv/ready" ]; then
  rm -rf "$venv"
  mkdir -p "$cache"
  if python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"; then
    touch "$venv/ready"
  else
    echo "skipped: real clients, their packages cannot be had here"
    exit 0
  fi
fi

work=$(mktemp -d)
server=
finish() {
  [ -z "$server" ] || kill "$server" 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT
"$ernie" serve "$model" --listen 127.0.0.1:0 2>"$work/log" &
server=$!
for _ in $(seq 600); do
  url=$(grep -o 'http://127.0.0.1:[0-9]*' "$work/log" | head -1 || true)
  if [ -n "$url" ] && curl -sf "$url/ready" >/dev/null; then break; fi
  kill -0 "$server" 2>/dev/null || { cat "$work/log"; exit 1; }
  sleep 0.1
done

"$venv/bin/python" "$here/openai_client.py" "$url"
"$venv/bin/python" "$here/lm_eval_client.py" "$url" "$model" "$ernie"

# A browser: one on the PATH, the system's own package where it may be installed, or else playwright's.
has_browser() { command -v chromium || command -v chromium-browser || command -v google-chrome; }
if ! has_browser >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } >"$work/browser" 2>&1 || tail -1 "$work/browser"
fi
if ! has_browser >/dev/null; then
  timeout 180 "$venv/bin/playwright" install --with-deps --only-shell chromium >"$work/browser" 2>&1 || tail -1 "$work/browser"
fi
status=0
"$venv/bin/python" "$here/../page_test.py" "$url" || status=$?
[ "$status" = 0 ] || [ "$status" = 77 ] || exit "$status"

# It leaves well.
kill -TERM "$server"
status=0
wait "$server" || status=$?
server=
[ "$status" = 0 ] || { echo "the server left with $status"; tail -3 "$work/log"; exit 1; }
