#!/usr/bin/env python3
"""Writes a GGUF of ERNIE-4.5 shape with random bf16 weights, which llama.cpp and ernie both run.

  make_gguf.py --shape 0.3b --out 0.3b-bf16.gguf

`0.3b` is the published ERNIE-4.5-0.3B; `moe-mid` a mixture of 695 M weights, 245 M of them active. The other formats are
made from this file by llama-quantize.
"""
import argparse

import gguf
import numpy as np

SHAPES = {
    "0.3b": dict(layers=18, hidden=1024, heads=16, kv=2, head=128, inner=3072, vocab=103424),
    "moe-mid": dict(layers=12, hidden=1024, heads=16, kv=4, head=128, inner=3072, vocab=32768,
                    experts=32, top=6, shared=2, expert_inner=512, dense_layers=1),
}
args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
args.add_argument("--shape", choices=SHAPES, default="0.3b")
args.add_argument("--context", type=int, default=8192)
args.add_argument("--seed", type=int, default=1)
args.add_argument("--out", required=True)
args = args.parse_args()
shape = SHAPES[args.shape]
moe = "experts" in shape
arch = "ernie4_5-moe" if moe else "ernie4_5"
out = gguf.GGUFWriter(args.out, arch)


def metadata():
    out.add_name(f"random {args.shape}")
    out.add_context_length(args.context)
    out.add_embedding_length(shape["hidden"])
    out.add_block_count(shape["layers"])
    out.add_feed_forward_length(shape["inner"])
    out.add_head_count(shape["heads"])
    out.add_head_count_kv(shape["kv"])
    out.add_key_length(shape["head"])
    out.add_value_length(shape["head"])
    out.add_rope_dimension_count(shape["head"])
    out.add_rope_freq_base(500000.0)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_vocab_size(shape["vocab"])
    out.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    if moe:
        out.add_expert_count(shape["experts"])
        out.add_expert_used_count(shape["top"])
        out.add_expert_feed_forward_length(shape["expert_inner"])
        out.add_uint32(f"{arch}.expert_shared_feed_forward_length", shape["expert_inner"] * shape["shared"])
        out.add_expert_shared_count(shape["shared"])
        out.add_uint32(f"{arch}.interleave_moe_layer_step", 1)
        out.add_leading_dense_block_count(shape["dense_layers"])


def invented_word(n):
    word = ""
    while True:
        word += "bdfgklmnprstvz"[n % 14] + "aeiou"[n // 14 % 5]
        n //= 70
        if n == 0:
            return "\u2581" + word


def tokenizer():
    """A SentencePiece vocabulary: specials, the 256 bytes, printable ASCII, then invented words."""
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    types = [2, 3, 3] + [6] * 256
    tokens += ["\u2581"] + [chr(code) for code in range(33, 127)]
    tokens += [invented_word(n) for n in range(shape["vocab"] - len(tokens))]
    types += [1] * (len(tokens) - len(types))
    out.add_tokenizer_model("llama")
    out.add_token_list(tokens)
    out.add_token_scores([-float(rank) for rank in range(len(tokens))])
    out.add_token_types(types)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)


random = np.random.default_rng(args.seed)


def matrix(name, *dims, f32=False):
    values = random.standard_normal(dims, dtype=np.float32) * np.float32(0.7 / np.sqrt(dims[-1]))
    if f32:
        out.add_tensor(name, values)
    else:
        kind = gguf.GGMLQuantizationType.BF16
        out.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def norm(name):
    out.add_tensor(name, np.ones(shape["hidden"], np.float32))


def weights():
    hidden, inner = shape["hidden"], shape["inner"]
    query, key = shape["heads"] * shape["head"], shape["kv"] * shape["head"]
    matrix("token_embd.weight", shape["vocab"], hidden)  # the head is tied to it
    norm("output_norm.weight")
    for layer in range(shape["layers"]):
        at = f"blk.{layer}."
        norm(at + "attn_norm.weight")
        norm(at + "ffn_norm.weight")
        matrix(at + "attn_q.weight", query, hidden)
        matrix(at + "attn_k.weight", key, hidden)
        matrix(at + "attn_v.weight", key, hidden)
        matrix(at + "attn_output.weight", hidden, query)
        if moe and layer >= shape["dense_layers"]:
            experts, inner = shape["experts"], shape["expert_inner"]
            matrix(at + "ffn_gate_inp.weight", experts, hidden, f32=True)
            out.add_tensor(at + "exp_probs_b.bias", np.zeros(experts, np.float32))
            matrix(at + "ffn_gate_exps.weight", experts, inner, hidden)
            matrix(at + "ffn_up_exps.weight", experts, inner, hidden)
            matrix(at + "ffn_down_exps.weight", experts, hidden, inner)
            matrix(at + "ffn_gate_shexp.weight", inner * shape["shared"], hidden)
            matrix(at + "ffn_up_shexp.weight", inner * shape["shared"], hidden)
            matrix(at + "ffn_down_shexp.weight", hidden, inner * shape["shared"])
        else:
            matrix(at + "ffn_gate.weight", inner, hidden)
            matrix(at + "ffn_up.weight", inner, hidden)
            matrix(at + "ffn_down.weight", hidden, inner)


metadata()
tokenizer()
weights()
out.write_header_to_file()
out.write_kv_data_to_file()
out.write_tensors_to_file()
out.close()
