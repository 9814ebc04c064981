#!/usr/bin/env python3
"""llama.cpp reads what `ernie convert --to gguf` writes and answers the same greedily: greedy.py ERNIE RUN...

Each RUN is a run folder. Both programs complete the same token ids, in f32, one token after the other.
"""
import json, pathlib, subprocess, sys, tempfile

from llama_cpp import Llama

ernie, runs = sys.argv[1], sys.argv[2:]
prompts, length = [[5, 6, 7], [300, 11, 42, 99, 140, 141, 7]], 24
for run in runs:
    with tempfile.TemporaryDirectory() as folder:
        file = str(pathlib.Path(folder) / "model.gguf")
        convert = [ernie, "convert", run, "--to", "gguf", "--type", "f32", "--out", file, "--quiet"]
        subprocess.run(convert, check=True, stdout=subprocess.DEVNULL)
        llama = Llama(file, n_ctx=256, n_threads=2, verbose=False)
        for prompt in prompts:
            ids = ",".join(map(str, prompt))
            command = [ernie, "generate", run, "--ids", ids, "--temperature", "0", "--max-tokens", str(length), "--json", "--quiet"]
            ours = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["ids"]
            theirs, end = [], llama.token_eos()
            for token in llama.generate(prompt, temp=0.0, repeat_penalty=1.0):
                if token == end or len(theirs) == length:
                    break
                theirs.append(token)
            if [id for id in ours if id != end] != theirs:
                sys.exit(f"{run}: after {prompt} ernie says {ours}, llama.cpp {theirs}")
    print(f"llama.cpp: {pathlib.Path(run).name} answers the same")
