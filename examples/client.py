"""Talks to `ernie serve` with OpenAI's own package (pip install openai). Usage: client.py [URL] [question]."""

import os
import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
question = sys.argv[2] if len(sys.argv) > 2 else "Who is the fox?"

# The package wants a key even where the server does not.
client = OpenAI(base_url=url + "/v1", api_key=os.environ.get("ERNIE_API_KEY", "none"))
model = client.models.list().data[0].id

stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": question}],
    max_tokens=64,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    elif chunk.usage:
        print(f"\n[{chunk.usage.completion_tokens} tokens after {chunk.usage.prompt_tokens}]")
