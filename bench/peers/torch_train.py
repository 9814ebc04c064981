#!/usr/bin/env python3
"""Training steps through transformers in the shapes of `ernie bench --train`: one JSON line.

  torch_train.py --model dense --dtype f32 --threads 2      # preset:bench-dense-28m
  torch_train.py --model moe --dtype bf16                   # preset:bench-moe-22m
  torch_train.py --model base --dtype bf16 --batch 4        # preset:base

Forward, backward and AdamW on random tokens; the first step is left out. One run is one process, so that the peak of
memory is its own.
"""
import argparse
import json
import os
import resource
import statistics
import time

args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
args.add_argument("--model", choices=["dense", "moe", "base"], default="dense")
args.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
args.add_argument("--compile", action="store_true")
args.add_argument("--threads", type=int, default=2)
args.add_argument("--steps", type=int, default=3)
args.add_argument("--batch", type=int, default=8)
args.add_argument("--seq", type=int, default=512)
args = args.parse_args()
os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))

import torch
from transformers import Ernie4_5_MoeConfig, Ernie4_5_MoeForCausalLM, Ernie4_5Config, Ernie4_5ForCausalLM

torch.set_num_threads(args.threads)
torch.manual_seed(0)
if args.model == "dense":
    config = Ernie4_5Config(vocab_size=8192, hidden_size=512, intermediate_size=1536, num_hidden_layers=8,
                            num_attention_heads=8, num_key_value_heads=2, head_dim=64, tie_word_embeddings=True)
    kind = Ernie4_5ForCausalLM
elif args.model == "base":
    config = Ernie4_5Config(vocab_size=103424, hidden_size=1024, intermediate_size=3072, num_hidden_layers=18,
                            num_attention_heads=16, num_key_value_heads=2, head_dim=128, tie_word_embeddings=True)
    kind = Ernie4_5ForCausalLM
else:
    config = Ernie4_5_MoeConfig(vocab_size=8192, hidden_size=256, intermediate_size=768, num_hidden_layers=6,
                                num_attention_heads=4, num_key_value_heads=2, moe_num_experts=16, moe_k=2,
                                moe_intermediate_size=256, moe_num_shared_experts=0, moe_layer_start_index=0,
                                moe_layer_interval=1, tie_word_embeddings=True)
    kind = Ernie4_5_MoeForCausalLM
config._attn_implementation = "sdpa"
model = kind(config).train()
step = torch.compile(model) if args.compile else model
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
ids = torch.randint(0, config.vocab_size, (args.batch, args.seq))
seconds, losses = [], []
for _ in range(args.steps + 1):
    began = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.dtype == "bf16"):
        loss = step(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    losses.append(loss.item())
    seconds.append(time.perf_counter() - began)
print(json.dumps({
    "peer": "torch", "torch": torch.__version__, "model": args.model, "dtype": args.dtype, "compile": args.compile,
    "threads": args.threads, "train_tokens_per_s": args.batch * args.seq / statistics.median(seconds[1:]),
    "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "loss_first": losses[0], "loss_last": losses[-1],
}))
