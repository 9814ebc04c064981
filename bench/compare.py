#!/usr/bin/env python3
"""ernie beside llama.cpp and PyTorch on this machine, in one run: every case is measured in rounds, each of which lets one
contestant after the other have the machine, so that all meet the same conditions. Medians of the rounds are compared.

  bench/peers/setup.sh && bench/peers/models.sh        # once
  cargo build --release
  bench/compare.py                                     # all cases, about half an hour on two cores
  bench/compare.py --cases prefill decode-8bit         # some
  bench/compare.py --write docs/performance.md         # puts the table between the marks in that file

Every measurement goes to --log as a line of JSON. Ratios are ours divided by the best peer's (the other way round for seconds and MiB);
above 1 ernie is ahead.
"""
import argparse
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
BEGIN, END = "<!-- compare.py begins -->", "<!-- compare.py ends -->"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--cases", nargs="+", metavar="NAME", help="default: all; `list` names them")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--ernie", default=ROOT / "target/release/ernie", type=pathlib.Path)
parser.add_argument("--peers", default=os.environ.get("PEERS_DIR") or CACHE / "ernie-peers", type=pathlib.Path)
parser.add_argument("--log", default="compare.jsonl", type=pathlib.Path)
parser.add_argument("--write", type=pathlib.Path, metavar="FILE.md")
args = parser.parse_args()
args.ernie, args.peers = args.ernie.resolve(), args.peers.resolve()
THREADS = str(args.threads)


class Failed(Exception):
    """A contestant that could not run, with the reason it gave."""


def output(command):
    command = [str(part) for part in command]
    if not os.path.exists(command[0]):
        raise Failed(f"{os.path.basename(command[0])} is not set up: bench/peers/README.md")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr.strip() or "no message").splitlines()
        raise Failed(next((line for line in lines if line.startswith("error:")), lines[-1])[:200])
    return done.stdout


def model(name):
    path = args.peers / "models" / f"{name}.gguf"
    if not path.exists():
        raise Failed(f"{path.name} is missing: bench/peers/models.sh makes it")
    return path


# ---- contestants: each returns tokens a second (or seconds, for `start`) and what else is worth a line in the log


def ernie(file, part, weights="native", prompt=512, gen=64, batch=1, context=0):
    """One part of `ernie bench`, `prefill` or `decode`; the other is kept as short as it can be."""
    prompt, gen = (prompt, 1) if part == "prefill" else (1, gen)
    answer = json.loads(output([
        args.ernie, "bench", model(file), "--weights", weights, "--prompt-tokens", prompt, "--gen-tokens", gen,
        "--batch", batch, "--context", context, "--repeat", 2, "--threads", THREADS, "--json", "--quiet"]))
    return answer[f"{part}_tokens_per_s"]["median"], {
        "share_of_limit": answer["share_of_limit"][part], "limits": answer["limits"],
        "weight_bytes": answer["weight_bytes"], "peak_rss_bytes": answer["peak_rss_bytes"], "commit": answer["commit"]}


def llama(file, part, flash, prompt=512, gen=64, context=0):
    shape = ["-p", prompt, "-n", 0] if part == "prefill" else ["-p", 0, "-n", gen]
    lines = output([args.peers / "llama-build/bin/llama-bench", "-m", model(file), "-t", THREADS, "-fa", flash,
                    "-d", context, *shape, "-r", 2, "-o", "jsonl"]).splitlines()
    answer = json.loads(next(line for line in lines if line.startswith("{")))
    return statistics.median(answer["samples_ts"]), {"weight_bytes": answer["model_size"]}


def llama_streams(file, streams, prompt=128, gen=32):
    lines = output([args.peers / "llama-build/bin/llama-batched-bench", "-m", model(file), "-t", THREADS, "-fa", "on",
                    "-c", streams * (prompt + gen) + 64, "-b", 2048, "-ub", 512, "-npp", prompt, "-ntg", gen,
                    "-npl", streams, "--output-format", "jsonl"]).splitlines()
    return json.loads(next(line for line in lines if line.startswith("{")))["speed_tg"], {}


def torch(part, dtype):
    python = args.peers / "venv/bin/python"
    answer = json.loads(output([python, ROOT / "bench/peers/torch_infer.py", "--dtype", dtype, "--threads", THREADS]))
    return answer[f"{part}_tokens_per_s"], answer


TRAIN = {"dense": ("preset:bench-dense-28m", 8), "moe": ("preset:bench-moe-22m", 8), "base": ("preset:base", 4)}


def ernie_train(shape, what):
    """Training steps: tokens a second, or MiB at the peak."""
    model, rows = TRAIN[shape]
    answer = json.loads(output([args.ernie, "bench", model, "--train", "--compute", "bf16", "--batch", rows, "--seq", 512,
                                "--steps", 3, "--threads", THREADS, "--json", "--quiet"]))
    value = answer["train_tokens_per_s"]["median"] if what == "rate" else answer["peak_rss_bytes"] / 2**20
    return value, {**({"share_of_limit": answer["share_of_limit"], "limits": answer["limits"]} if what == "rate" else {}),
                   "rate": answer["train_tokens_per_s"]["median"], "peak_rss_bytes": answer["peak_rss_bytes"]}


def torch_train(shape, what, dtype, compiled=False):
    answer = json.loads(output([args.peers / "venv/bin/python", ROOT / "bench/peers/torch_train.py", "--model", shape,
                                "--dtype", dtype, "--batch", TRAIN[shape][1], "--threads", THREADS,
                                *(["--compile"] if compiled else [])]).splitlines()[-1])
    return answer["train_tokens_per_s"] if what == "rate" else answer["peak_rss_bytes"] / 2**20, answer


def training(about, shape, rate, memory):
    """Two cases: speed beside PyTorch at its fastest, memory beside PyTorch compiled."""
    peers = {"PyTorch bf16": ("bf16", False), "PyTorch bf16, compiled": ("bf16", True), "PyTorch f32": ("f32", False)}
    if shape == "base":
        del peers["PyTorch f32"]
    run = lambda what, how: lambda: torch_train(shape, what, *how)
    return {
        f"train-{shape}": case(f"training {about}", rate, lambda: ernie_train(shape, "rate"),
                               {name: run("rate", how) for name, how in peers.items()}),
        f"train-{shape}-memory": case(f"training {about}; MiB at the peak", memory, lambda: ernie_train(shape, "memory"),
                                      {"PyTorch bf16, compiled": run("memory", ("bf16", True))}, less_is_better=True),
    }


def seconds(command):
    began = time.perf_counter()
    output(command)
    return time.perf_counter() - began, {}


def ernie_start(file):
    return seconds([args.ernie, "generate", model(file), "--ids", "5", "--max-tokens", 1, "--temperature", 0,
                    "--ignore-eos", "--threads", THREADS, "--quiet"])


def llama_start(file):
    return seconds([args.peers / "llama-build/bin/llama-bench", "-m", model(file), "-t", THREADS, "-p", 0, "-n", 1,
                    "-r", 1, "--no-warmup"])


# ---- cases


def best_of(shape, part, flashes=("on", "off"), formats=("Q8_0", "Q4_0", "Q4_K_M", "bf16"), **more):
    return {f"llama.cpp {format}, fa {flash}": lambda format=format, flash=flash: llama(
        f"{shape}-{format}", part, flash, **more) for format in formats for flash in flashes}


def case(about, target, ours, peers, less_is_better=False):
    return dict(about=about, target=target, ours=ours, peers=peers, less=less_is_better)


EIGHT = ("Q8_0",)
FOUR = ("Q4_0", "Q4_K_M")
CASES = {
    "prefill": case("0.3B, prompt of 512, 8 bits; llama.cpp's best format", 2.2,
                    lambda: ernie("0.3b-bf16", "prefill", "int8"), best_of("0.3b", "prefill")),
    "prefill-torch": case("0.3B, prompt of 512, 8 bits; PyTorch in bf16", 2.0,
                          lambda: ernie("0.3b-bf16", "prefill", "int8"),
                          {"PyTorch bf16": lambda: torch("prefill", "bf16")}),
    "decode-8bit": case("0.3B, writing, 8 bits", 1.3, lambda: ernie("0.3b-bf16", "decode", "int8"),
                        best_of("0.3b", "decode", formats=EIGHT)),
    "decode-4bit": case("0.3B, writing, 4 bits", 1.4, lambda: ernie("0.3b-bf16", "decode", "int4"),
                        best_of("0.3b", "decode", formats=FOUR)),
    "decode-4096": case("0.3B, writing after 4,096 tokens, 8 bits", 2.4,
                        lambda: ernie("0.3b-bf16", "decode", "int8", context=4096, gen=32),
                        best_of("0.3b", "decode", formats=EIGHT, context=4096, gen=32)),
    "streams-16": case("0.3B, 16 sequences writing after 128 tokens each, 8 bits", 3.5,
                       lambda: ernie("0.3b-bf16", "decode", "int8", batch=16, context=128, gen=32),
                       {"llama.cpp Q8_0": lambda: llama_streams("0.3b-Q8_0", 16)}),
    "moe-prefill": case("MoE, prompt of 512, 8 bits; llama.cpp's best format", 2.5,
                        lambda: ernie("moe-mid-bf16", "prefill", "int8"), best_of("moe-mid", "prefill", flashes=("on",))),
    "moe-decode": case("MoE, writing, 8 bits", 1.3, lambda: ernie("moe-mid-bf16", "decode", "int8"),
                       best_of("moe-mid", "decode", formats=EIGHT)),
    "moe-streams-16": case("MoE, 16 sequences writing after 128 tokens each, 8 bits", 3.5,
                           lambda: ernie("moe-mid-bf16", "decode", "int8", batch=16, context=128, gen=32),
                           {"llama.cpp Q8_0": lambda: llama_streams("moe-mid-Q8_0", 16)}),
    "smollm2-prefill": case("SmolLM2-135M as published (Q4_1), prompt of 512", 5,
                            lambda: ernie("smollm2-Q4_1", "prefill"), best_of("smollm2", "prefill", formats=("Q4_1",))),
    "smollm2-decode": case("SmolLM2-135M as published (Q4_1), writing", 2.5,
                           lambda: ernie("smollm2-Q4_1", "decode"), best_of("smollm2", "decode", formats=("Q4_1",))),
    "start": case("start to first token, 0.3B (Q8_0), file in the page cache; seconds", 2.0,
                  lambda: ernie_start("0.3b-Q8_0"), {"llama.cpp": lambda: llama_start("0.3b-Q8_0")},
                  less_is_better=True),
    "start-smollm2": case("start to first token, SmolLM2-135M (Q4_1), file in the page cache; seconds", 2.0,
                          lambda: ernie_start("smollm2-Q4_1"), {"llama.cpp": lambda: llama_start("smollm2-Q4_1")},
                          less_is_better=True),
    "int8-f32": case("0.3B, writing, 8 bits; ernie itself in f32", 3.43, lambda: ernie("0.3b-bf16", "decode", "int8"),
                     {"ernie f32": lambda: ernie("0.3b-bf16", "decode", "f32")}),
    **training("a dense model of 28 M, 8 x 512 tokens", "dense", 1.3, 2.0),
    **training("a mixture of experts of 22 M, 8 x 512 tokens", "moe", 2.0, 1.67),
    **training("all of the 0.3B, 4 x 512 tokens", "base", 1.5, 1.54),
}


def measure(name, case, log):
    """All rounds of a case: the values of each contestant, and why some have none."""
    contestants = {"ernie": case["ours"], **case["peers"]}
    values, failed, share = {who: [] for who in contestants}, {}, []
    for number in range(args.rounds):
        for who, run in contestants.items():
            if who in failed:
                continue
            try:
                value, more = run()
            except Failed as why:
                failed[who] = str(why)
                print(f"  {who}: {why}", file=sys.stderr)
                continue
            values[who].append(value)
            if who == "ernie" and "share_of_limit" in more:
                share.append(more["share_of_limit"])
            print(f"  {who}: {value:.4g}", file=sys.stderr)
            log.write(json.dumps({"case": name, "round": number, "who": who, "value": value, **more}) + "\n")
            log.flush()
    medians = {who: statistics.median(all) for who, all in values.items() if all}
    return medians, failed, statistics.median(share) if share else None


def row(name, case, log):
    print(f"{name}: {case['about']}", file=sys.stderr)
    medians, failed, share = measure(name, case, log)
    ours = medians.pop("ernie", None)
    number = (lambda x: f"{x:.2f}") if case["less"] else (lambda x: f"{x:,.1f}" if x < 100 else f"{x:,.0f}")
    best = (min if case["less"] else max)(medians, key=medians.get, default=None)
    cells = ["–"] * 5
    if ours and best:
        ratio = medians[best] / ours if case["less"] else ours / medians[best]
        cells[0] = f"**{ratio:.2f}**" if ratio >= case["target"] else f"{ratio:.2f}"
    cells[1] = f"{case['target']:g}"
    cells[2] = number(ours) if ours else failed.get("ernie", "–").removeprefix("error: ")
    if share:
        cells[3] = f"{100 * share:.0f} %"
    cells[4] = f"{number(medians[best])} ({best})" if best else next(iter(failed.values()), "–")
    return f"| {case['about']} | " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def machine():
    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    version = output([args.ernie, "--version"]).strip()
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    when = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return f"{cpu}, {args.threads} threads, {version} ({commit or 'no commit'}), {when}; medians of {args.rounds} alternating rounds."


def limits_line(lines):
    """The best of the limits that our own runs measured on the way."""
    all = [line["limits"] for line in lines if "limits" in line]
    best = lambda name: max((limits[name] for limits in all if limits.get(name)), default=None)
    show = lambda name, text, unit: f"{text} {best(name):.0f} {unit}" if best(name) else f"{text} no instruction"
    return "" if not all else "Limits measured in the same run: " + ", ".join([
        show("read_gb_per_s", "reading", "GB/s"), show("f32_gflop_per_s", "f32", "GFLOP/s"),
        show("bf16_gflop_per_s", "bf16", "GFLOP/s"), show("int8_gop_per_s", "int8", "GOP/s")]) + "."


def main():
    if args.cases == ["list"]:
        print("\n".join(f"{name:16} {case['about']}" for name, case in CASES.items()))
        return
    unknown = set(args.cases or []) - set(CASES)
    if unknown:
        sys.exit(f"no case is called {', '.join(sorted(unknown))}; `--cases list` names them")
    if not args.ernie.exists():
        sys.exit(f"{args.ernie} is missing: cargo build --release")
    if args.write and BEGIN not in args.write.read_text():
        sys.exit(f"{args.write} has no line {BEGIN}")
    with open(args.log, "w") as log:
        rows = [row(name, CASES[name], log) for name in args.cases or CASES]
    measured = [json.loads(line) for line in open(args.log)]
    table = "\n".join(["| case | ernie ÷ best peer | target | ernie | of the limit | best peer |",
                       "| --- | --- | --- | --- | --- | --- |", *rows, "", machine(), limits_line(measured)])
    print(table)
    if args.write:
        text = args.write.read_text()
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        args.write.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")


main()
