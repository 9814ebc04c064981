#!/usr/bin/env python3
"""Loads checkpoints that `ernie-train` wrote with `transformers` and `peft`, and compares logits and token ids.

  cargo run -p ernie-train --example tiny_checkpoints -- OUT     # trains tiny models
  python check.py OUT > result.json                              # torch, transformers 5, peft, safetensors

OUT/NAME/checkpoint-N is the published layout; OUT/NAME/expected.safetensors holds `input_ids` [B, T] and our `logits`
[B, T, V] (float32), OUT/NAME/expected.json a `text` and our `ids` of it. Exits 1 if anything differs by more than 1e-4,
if a tensor is missing or unexpected, or if the tokenizer gives other ids. Where there is OUT/NAME/checkpoint-N/adapter, `peft` puts it
beside the model that it was trained beside, which must give the same logits as the checkpoint with the change in it.
Where `expected.safetensors` holds `scores` [B, labels] in the place of logits, the checkpoint has a head for labels: a class of transformers' parts
(`GenericForSequenceClassification`) must give the same, and the labels the same names.
"""
import json, pathlib, sys

import peft, safetensors.torch, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.ernie4_5.modeling_ernie4_5 import Ernie4_5PreTrainedModel
from transformers.models.ernie4_5_moe.modeling_ernie4_5_moe import Ernie4_5_MoePreTrainedModel

torch.set_num_threads(1)
out, good = pathlib.Path(sys.argv[1]), True
cases = {}


def newest(folder):
    return max(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))


def logits_of(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False).logits.float()


class Ernie4_5ForSequenceClassification(GenericForSequenceClassification, Ernie4_5PreTrainedModel):
    pass


class Ernie4_5_MoeForSequenceClassification(GenericForSequenceClassification, Ernie4_5_MoePreTrainedModel):
    pass


def base_of(adapter):
    return newest(pathlib.Path(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]))


def labels(checkpoint, expected):
    config = json.loads((checkpoint / "config.json").read_text())
    kind = globals()[config["architectures"][0]]
    model, info = kind.from_pretrained(checkpoint, dtype=torch.float32, output_loading_info=True)
    scores = logits_of(model, expected["input_ids"])
    case = {
        "class": kind.__name__,
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "labels": model.config.id2label,
        "largest_difference": float((scores - expected["scores"]).abs().max()),
    }
    case["good"] = (
        not case["missing"]
        and set(case["unexpected"]) <= {"lm_head.weight"}
        and case["largest_difference"] <= 1e-4
        and case["labels"] == {0: "high", 1: "low", 2: "none"}
        and model.config.problem_type == "single_label_classification"
    )
    adapter = checkpoint / "adapter"
    if adapter.exists():
        beside = kind.from_pretrained(base_of(adapter), num_labels=3, dtype=torch.float32)
        scores = logits_of(peft.PeftModel.from_pretrained(beside, adapter), expected["input_ids"])
        case["largest_difference_with_peft"] = float((scores - expected["scores"]).abs().max())
        case["good"] &= case["largest_difference_with_peft"] <= 1e-4
    return case


for folder in sorted(p for p in out.iterdir() if p.is_dir()):
    checkpoint = newest(folder)
    expected = safetensors.torch.load_file(folder / "expected.safetensors")
    if "scores" in expected:
        cases[folder.name] = labels(checkpoint, expected)
        good &= cases[folder.name]["good"]
        continue
    model, info = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, output_loading_info=True)
    logits = logits_of(model, expected["input_ids"])
    case = {
        "class": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "logits": list(logits.shape),
        "largest_logit": float(logits.abs().max()),
        "largest_difference": float((logits - expected["logits"]).abs().max()),
        "same_argmax": bool((logits.argmax(-1) == expected["logits"].argmax(-1)).all()),
    }
    text = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    ids = AutoTokenizer.from_pretrained(checkpoint)(text["text"], add_special_tokens=False)["input_ids"]
    case["same_token_ids"] = ids == text["ids"]
    case["good"] = (
        not case["missing"] and not case["unexpected"] and case["largest_difference"] <= 1e-4 and case["same_token_ids"]
    )
    adapter = checkpoint / "adapter"
    if adapter.exists():
        beside = AutoModelForCausalLM.from_pretrained(base_of(adapter), dtype=torch.float32)
        before = logits_of(beside, expected["input_ids"])
        with_it = logits_of(peft.PeftModel.from_pretrained(beside, adapter), expected["input_ids"])
        case["adapter_changes"] = float((before - expected["logits"]).abs().max())
        case["largest_difference_with_peft"] = float((with_it - expected["logits"]).abs().max())
        case["good"] &= case["largest_difference_with_peft"] <= 1e-4 < case["adapter_changes"]
    good &= case["good"]
    cases[folder.name] = case
versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
json.dump(versions | {"cases": cases}, sys.stdout, indent=1)
print()
sys.exit(0 if good and cases else 1)
