#!/usr/bin/env python3
"""ernie's server beside llama.cpp's, on the same file, in turns, from outside.

  PEERS="llamacpp gguf server" bench/peers/setup.sh && bench/peers/models.sh     # once
  cargo build --release
  bench/serve.py                                  # about ten minutes on two cores
  bench/serve.py --write docs/performance.md      # puts the table between the marks in that file

Both servers stay up; one is asked while the other is idle. Times count from when a request was due.
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--ernie", type=pathlib.Path, default=ROOT / "target/release/ernie", help="the program")
parser.add_argument("--peers", type=pathlib.Path,
                    default=pathlib.Path(os.environ.get("PEERS_DIR", CACHE / "ernie-peers")), help="where setup.sh put them")
parser.add_argument("--model", default="0.3b-Q8_0.gguf", help="a file of models.sh (default: %(default)s)")
parser.add_argument("--weights", default="int8", help="what ernie computes on (default: %(default)s)")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--requests", type=int, default=48, help="of a run (default: %(default)s)")
parser.add_argument("--rounds", type=int, default=1, help="runs of each load and server (default: %(default)s)")
parser.add_argument("--clients", default="1,4,16", help="readers at a time, `none` for none (default: %(default)s)")
parser.add_argument("--saturation", default="0.5,0.7,0.9", help="shares of what the slower server bears, or `none`")
parser.add_argument("--write", type=pathlib.Path, metavar="FILE.md", help="replace the table between the marks of a file")
args = parser.parse_args()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(command, port, ready, log):
    """Starts a server and waits until it says that its model is loaded."""
    process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log)
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{ready}", timeout=1):
                return process
        except OSError:
            time.sleep(0.1)
    process.kill()
    log.seek(0)
    sys.exit(f"{command[0]} does not answer:\n{log.read()[-2000:]}")


def ms(value):
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def table(answer):
    lines = [
        "| load | tokens/s, ernie | llama.cpp | ÷ | first token p95, ernie | llama.cpp | ÷ | between tokens p95 | ÷ | whole answer p95 | ÷ |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for level in answer["levels"]:
        ours, theirs = level["servers"]
        if level["clients"]:
            name = f"{level['clients']} reader{'s' if level['clients'] > 1 else ''}"
        else:
            name = f"{level['share']} of saturation ({level['rate_per_s']:.2f}/s)"
        ratio = level["ratio"]
        failed = sum(sum(server["errors"].values()) for server in level["servers"])
        name += f"; {failed} failed" if failed else ""
        cells = [
            name, f"{ours['tokens_per_s']:.1f}", f"{theirs['tokens_per_s']:.1f}", f"{ratio['tokens_per_s']:.2f}",
            f"{ms(ours['ttft_ms']['p95'])} ms", f"{ms(theirs['ttft_ms']['p95'])} ms", f"{ratio['ttft_p95']:.2f}",
            f"{ms(ours['itl_ms']['p95'])} / {ms(theirs['itl_ms']['p95'])} ms", f"{ratio['itl_p95']:.2f}",
            f"{ms(ours['e2e_ms']['p95'])} / {ms(theirs['e2e_ms']['p95'])} ms", f"{ratio['e2e_p95']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def cpu():
    text = pathlib.Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    found = re.search(r"model name\s*: (.*)", text)
    return found.group(1) if found else "this processor"


def main():
    model = args.peers / "models" / args.model
    llama = args.peers / "llama-build/bin/llama-server"
    for path, how in [(model, "bench/peers/models.sh"), (llama, 'PEERS="llamacpp gguf server" bench/peers/setup.sh'),
                      (args.ernie, "cargo build --release")]:
        if not path.exists():
            sys.exit(f"{path} is missing: {how} makes it")
    ours, theirs = free_port(), free_port()
    with tempfile.TemporaryFile("w+") as log_a, tempfile.TemporaryFile("w+") as log_b:
        servers = []
        try:
            servers.append(start([args.ernie, "serve", model, "--weights", args.weights, "--listen", f"127.0.0.1:{ours}",
                                  "--threads", args.threads], ours, "/ready", log_a))
            # As many slots as readers, its best attention, no page.
            servers.append(start([llama, "-m", model, "-t", args.threads, "-tb", args.threads, "--host", "127.0.0.1", "--port",
                                  theirs, "-np", 16, "-c", 16 * 1024, "-fa", "on", "--no-webui"], theirs, "/health", log_b))
            command = [args.ernie, "bench", "serve", f"http://127.0.0.1:{ours}", "--compare", f"http://127.0.0.1:{theirs}",
                       "--requests", args.requests, "--rounds", args.rounds, "--json"]
            command += ["--clients", args.clients] if args.clients != "none" else []
            command += ["--saturation", args.saturation] if args.saturation != "none" else []
            command += ["--engine", model, "--weights", args.weights, "--threads", args.threads]
            done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, check=True)
        finally:
            for server in servers:
                server.terminate()
            for server in servers:
                server.wait()
    answer = json.loads(done.stdout)
    lines = table(answer)
    shares = [f"{e['clients']}: {100 * e['http_share']:.1f} %" for e in answer["engine"]]
    lines += [
        "",
        f"{cpu()}, {args.threads} threads, {args.model} (ernie: {args.weights}), ernie {answer['version']} ({answer['commit']}), "
        f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC; {args.requests} requests a run, "
        f"{args.rounds} round{'s' if args.rounds > 1 else ''}, prompts of about {answer['prompt_tokens']} tokens, answers of about "
        f"{answer['gen_tokens']}. Ratios of times: less is better. 32 readers get "
        f"{' and '.join(f'{x:.2f}' for x in answer['saturation_requests_per_s'])} answers a second. "
        f"Share of the engine's own tokens a second that is left behind HTTP, by readers: {', '.join(shares)}.",
    ]
    text = "\n".join(lines)
    print(text)
    if args.write:
        page = args.write.read_text()
        begin, end = "<!-- serve.py begins -->", "<!-- serve.py ends -->"
        if begin not in page or end not in page:
            sys.exit(f"{args.write} has no marks {begin} and {end}")
        head, rest = page.split(begin, 1)
        args.write.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}")


main()
