#!/usr/bin/env python3
"""Quantises tiny checkpoints and has `transformers` read them through compressed-tensors.

  python integers.py ERNIE OUT NAME...     # the program, and the folder that the example tiny_checkpoints filled

Each OUT/NAME/checkpoint-N is written in 8 and in 4 bits by `ernie quantize`. `ernie logits --weights f32` and `transformers` must then agree on the logits of
OUT/NAME/expected.safetensors' `input_ids` within 1e-4, and both be away from the logits of the model that was rounded.
"""
import json, pathlib, subprocess, sys, tempfile

import safetensors.torch, torch
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
ernie, out = sys.argv[1], pathlib.Path(sys.argv[2])


def run(*args):
    subprocess.run([ernie, *map(str, args), "--quiet"], check=True)


good = 0
for name in sys.argv[3:]:
    expected = safetensors.torch.load_file(out / name / "expected.safetensors")
    checkpoint = max((out / name).glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    for form in ["int8", "int4"]:
        with tempfile.TemporaryDirectory() as work:
            work = pathlib.Path(work)
            quantised, ids, ours = work / "quantised", work / "ids.json", work / "logits.safetensors"
            run("quantize", checkpoint, "--to", form, "--out", quantised)
            ids.write_text(json.dumps(expected["input_ids"].tolist()))
            run("logits", quantised, "--weights", "f32", "--ids-file", ids, "--out", ours)
            ours = safetensors.torch.load_file(ours)
            model = AutoModelForCausalLM.from_pretrained(quantised, dtype=torch.float32)
            with torch.no_grad():
                theirs = model.eval()(input_ids=expected["input_ids"], use_cache=False).logits.float()
            ours = torch.stack([ours[f"logits.{row}"] for row in range(len(theirs))])
            apart, rounding = float((ours - theirs).abs().max()), float((ours - expected["logits"]).abs().max())
            if not apart <= 1e-4 < rounding:
                sys.exit(f"{name} in {form}: {apart} from transformers' logits, {rounding} from those before rounding")
            good += 1
print(f"compressed-tensors: {good} quantised models have the same logits")
