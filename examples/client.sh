#!/bin/sh
# Talks to `ernie serve` with curl. Usage: client.sh [URL] [question]; a key is taken from ERNIE_API_KEY.
set -eu
url=${1:-http://127.0.0.1:8080}
question=${2:-Who is the fox?}

# A question may hold quotes and line ends, so it becomes JSON by a program that knows how.
body=$(python3 -c 'import json, sys; print(json.dumps({
  "messages": [{"role": "user", "content": sys.argv[1]}], "max_tokens": 64, "stream": True}))' "$question")

curl --silent --show-error --no-buffer --fail-with-body "$url/v1/chat/completions" \
  -H 'content-type: application/json' ${ERNIE_API_KEY:+-H "authorization: Bearer $ERNIE_API_KEY"} -d "$body"
