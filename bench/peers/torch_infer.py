#!/usr/bin/env python3
"""transformers on the ERNIE-4.5-0.3B shape with random weights: one JSON line with prefill and decode in tokens a second.

  torch_infer.py --dtype bf16 --threads 2 --prompt 512 --gen 32
"""
import argparse
import json
import os
import statistics
import time

args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
args.add_argument("--dtype", choices=["f32", "bf16"], default="bf16")
args.add_argument("--threads", type=int, default=2)
args.add_argument("--prompt", type=int, default=512)
args.add_argument("--gen", type=int, default=32)
args.add_argument("--repeat", type=int, default=3)
args = args.parse_args()
os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))

import torch
from transformers import DynamicCache, Ernie4_5Config, Ernie4_5ForCausalLM

torch.set_num_threads(args.threads)
torch.manual_seed(0)
config = Ernie4_5Config(vocab_size=103424, hidden_size=1024, intermediate_size=3072, num_hidden_layers=18,
                        num_attention_heads=16, num_key_value_heads=2, head_dim=128, tie_word_embeddings=True,
                        max_position_embeddings=131072)
config._attn_implementation = "sdpa"
model = Ernie4_5ForCausalLM(config).to(torch.float32 if args.dtype == "f32" else torch.bfloat16).eval()


def timed(run):
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def ids(n):
    return torch.randint(0, config.vocab_size, (1, n))


with torch.inference_mode():
    prompt = ids(args.prompt)
    read = [timed(lambda: model(prompt, use_cache=True, logits_to_keep=1)) for _ in range(args.repeat + 1)][1:]
    cache = DynamicCache(config=config)
    write = [timed(lambda: model(ids(1), past_key_values=cache, use_cache=True)) for _ in range(args.gen + 4)][4:]
print(json.dumps({
    "peer": "torch", "torch": torch.__version__, "dtype": args.dtype, "threads": args.threads,
    "prefill_tokens_per_s": args.prompt / statistics.median(read),
    "decode_tokens_per_s": 1 / statistics.median(write),
}))
