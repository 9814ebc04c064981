#!/usr/bin/env python3
"""lm-evaluation-harness against a running server: its log-probabilities are those of `ernie score`.

    lm_eval_client.py http://127.0.0.1:8080 MODEL ERNIE
"""

import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
os.environ["TQDM_DISABLE"] = os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
os.chdir(HERE)  # the task names its lines by a relative path

import lm_eval  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

url, model, ernie = sys.argv[1:]
answer = lm_eval.simple_evaluate(
    model="local-completions",
    model_args={
        "model": json.loads(subprocess.run(["curl", "-sf", f"{url}/v1/models"], stdout=subprocess.PIPE, check=True).stdout)["data"][0]["id"],
        "base_url": f"{url}/v1/completions",
        "tokenizer_backend": "remote",
        "num_concurrent": 4,
        "max_retries": 1,
    },
    tasks=["ernie_choices"],
    task_manager=TaskManager(include_path=str(HERE), include_defaults=False),
    log_samples=True,
    bootstrap_iters=0,
)
samples = answer["samples"]["ernie_choices"]
pairs, theirs = [], []
for sample in samples:
    for request, reply in zip(sample["arguments"], sample["resps"]):
        context, continuation = request if not isinstance(request, dict) else request.values()
        logprob, greedy = reply[0]
        pairs.append({"context": context, "continuation": continuation})
        theirs.append((float(logprob), str(greedy) == "True"))
lines = "".join(json.dumps(pair) + "\n" for pair in pairs)
scored = subprocess.run([ernie, "score", model, "--input", "-", "--quiet"], input=lines, stdout=subprocess.PIPE, text=True, check=True)
ours = [json.loads(line) for line in scored.stdout.splitlines()]
assert len(ours) == len(theirs) == 20, (len(ours), len(theirs))
worst = 0.0
for pair, line, (logprob, greedy) in zip(pairs, ours, theirs):
    difference = abs(line["logprob"] - logprob)
    worst = max(worst, difference)
    assert difference <= 1e-4 and line["greedy"] == greedy, (pair, line, logprob, greedy)
accuracy = answer["results"]["ernie_choices"]["acc,none"]
print(f"lm_eval: {len(pairs)} log-probabilities equal to `ernie score` within {worst:.1e}, accuracy {accuracy:.2f}")
