#!/usr/bin/env python3
"""Runs OpenAI-compatible servers side by side on one machine and prints one table with ratios to the first.

Each server is started alone, measured, and stopped; rounds go over all servers in turn, so that a slow minute of the
machine hits all of them. Python 3.9 or later, standard library only.

  compare.py --rounds 5 \\
     'dualgauge=target/release/serve --model DIR --port {port}' \\
     'llama.cpp=llama-server -m FILE.gguf --port {port} -c 32768 -np 32 -t 2'

Figures (medians over rounds, with the smallest and largest):
  first token s    process start to the first streamed token, files in the page cache
  prefill tok/s    512 prompt tokens / time to the first token
  decode tok/s     one stream, 128 tokens after the first
  32 clients tok/s output tokens of 32 streams (128 in, 64 out) / time of all
  16 clients ...   48 such streams, 16 at a time: time to the first token, its median; gaps between tokens (ITL)
  RSS MB           largest resident memory of the server's processes after all that
"""
import argparse
import http.client
import json
import random
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time

WORDS = "the of and to in is that it was for on are as with his they at be this from have or by one had not but what".split()


def prompt(tokens):
    return " ".join(random.choice(WORDS) for _ in range(tokens))


def stream(port, text, max_tokens, gaps=None):
    """Streams one completion; returns (seconds to the first token, seconds to the last, tokens). The seconds between
    tokens are appended to `gaps`."""
    body = {"model": "m", "prompt": text, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "stream": True,
            "min_tokens": max_tokens, "stream_options": {"include_usage": True}}
    begin = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"status {response.status}: {response.read(300)!r}")
    first = last = None
    tokens = 0
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if event.get("usage"):
            tokens = event["usage"]["completion_tokens"]
        if event.get("choices") and "text" in event["choices"][0]:
            now = time.monotonic() - begin
            if gaps is not None and last is not None:
                gaps.append(now - last)
            last = now
            first = last if first is None else first
    connection.close()
    return first, last, tokens


def wait_ready(port, process):
    """Seconds from now to the first streamed token."""
    begin = time.monotonic()
    while time.monotonic() - begin < 600:
        if process.poll() is not None:
            sys.exit(f"the server ended with status {process.returncode}")
        try:
            if stream(port, "Hello", 1)[0] is not None:
                return time.monotonic() - begin
        except (OSError, RuntimeError, http.client.HTTPException):
            time.sleep(0.02)
    sys.exit("the server was not ready within ten minutes")


def family(pid):
    """The process and all it has started."""
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        return [pid] + [one for child in f.read().split() for one in family(int(child))]


def peak_rss_mb(pid):
    def one(pid):
        with open(f"/proc/{pid}/status") as f:
            return next((int(line.split()[1]) / 1024 for line in f if line.startswith("VmHWM")), 0)
    return sum(one(p) for p in family(pid))


def clients(port, at_once, requests):
    """Closed loop: (tok/s of all, seconds to the first token of each, gaps between tokens)."""
    texts, results, gaps = [prompt(128) for _ in range(requests)], [], []
    def run():
        while True:
            try:
                text = texts.pop()
            except IndexError:
                return
            results.append(stream(port, text, 64, gaps))
    threads = [threading.Thread(target=run) for _ in range(at_once)]
    begin = time.monotonic()
    [t.start() for t in threads]
    [t.join() for t in threads]
    return sum(r[2] for r in results) / (time.monotonic() - begin), [r[0] for r in results], gaps


def measure(command, port):
    process = subprocess.Popen(shlex.split(command.format(port=port)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        out = {"first token s": wait_ready(port, process)}
        stream(port, prompt(64), 8)
        prefills, decodes = [], []
        for _ in range(3):
            prefills.append(512 / stream(port, prompt(512), 1)[0])
            first, last, tokens = stream(port, prompt(16), 129)
            decodes.append((tokens - 1) / (last - first))
        out["prefill tok/s"], out["decode tok/s"] = statistics.median(prefills), statistics.median(decodes)
        out["32 clients tok/s"] = clients(port, 32, 32)[0]
        _, firsts, gaps = clients(port, 16, 48)
        gaps.sort()
        out["16 clients TTFT p50 ms"] = statistics.median(firsts) * 1e3
        out["16 clients ITL p50 ms"], out["16 clients ITL p99 ms"] = statistics.median(gaps) * 1e3, gaps[len(gaps) * 99 // 100] * 1e3
        out["RSS MB"] = peak_rss_mb(process.pid)
        return out
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=18400)
    parser.add_argument("--json", help="also append every figure, a line a server and round, to this file")
    parser.add_argument("servers", nargs="+", metavar="NAME=COMMAND")
    args = parser.parse_args()
    servers = [s.split("=", 1) for s in args.servers]
    all_figures = {name: [] for name, _ in servers}
    for round_number in range(args.rounds):
        for i, (name, command) in enumerate(servers):
            print(f"round {round_number + 1} of {args.rounds}: {name}", file=sys.stderr)
            figures = measure(command, args.port + i)
            all_figures[name].append(figures)
            if args.json:
                with open(args.json, "a") as f:
                    f.write(json.dumps({"server": name, "round": round_number + 1, **figures}) + "\n")
    names = list(all_figures)
    print("| | " + " | ".join(names) + " | " + " | ".join(f"{names[0]} / {n}" for n in names[1:]) + " |")
    print("|---" * (2 * len(names)) + "|")
    for figure in all_figures[names[0]][0]:
        values = {n: [f[figure] for f in all_figures[n]] for n in names}
        middle = {n: statistics.median(v) for n, v in values.items()}
        cells = [f"{middle[n]:.4g} ({min(values[n]):.4g}-{max(values[n]):.4g})" for n in names]
        ratios = [f"{middle[names[0]] / middle[n]:.2f}" for n in names[1:]]
        print(f"| {figure} | " + " | ".join(cells + ratios) + " |")


if __name__ == "__main__":
    main()
