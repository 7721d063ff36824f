#!/usr/bin/env python3
"""Puts OpenVINO GenAI's continuous batching, a library without a server, behind `/v1/completions` as far as compare.py needs
it: streaming, one event a token. Needs `pip install openvino-genai`.

  openvino_server.py MODEL.gguf --port 8000

One thread steps the pipeline; each connection waits for its tokens on a queue. The pipeline adds and steps under one lock,
as the library asks.
"""
import argparse
import json
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openvino_genai as genai


class Pipeline:
    def __init__(self, path, cache_gib):
        schedule = genai.SchedulerConfig()
        schedule.cache_size, schedule.max_num_seqs, schedule.dynamic_split_fuse = cache_gib, 64, True
        schedule.enable_prefix_caching = False
        self.pipe = genai.ContinuousBatchingPipeline(path, schedule, "CPU")
        self.lock, self.work, self.running, self.next_id = threading.Lock(), threading.Event(), {}, 0
        threading.Thread(target=self.run, daemon=True).start()

    def submit(self, prompt, max_tokens):
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = max_tokens, True, False
        tokens = queue.Queue()
        with self.lock:
            self.next_id += 1
            self.running[self.next_id] = self.pipe.add_request(self.next_id, prompt, config), tokens
        self.work.set()
        return tokens

    def run(self):
        while True:
            self.work.wait()
            with self.lock:
                self.pipe.step()
                for name, (handle, tokens) in list(self.running.items()):
                    while handle.can_read():
                        for output in handle.read().values():
                            for token in output.generated_ids:
                                tokens.put(token)
                    if handle.get_status() != genai.GenerationStatus.RUNNING:
                        tokens.put(None)
                        del self.running[name]
                if not self.running:
                    self.work.clear()


def handler(pipeline):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def log_message(self, *_):
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            tokens = pipeline.submit(body["prompt"], body["max_tokens"])
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            count = 0
            while tokens.get() is not None:
                count += 1
                self.event({"choices": [{"text": "?"}]})
            self.event({"choices": [], "usage": {"completion_tokens": count}})

        def event(self, value):
            self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
            self.wfile.flush()

    return Handler


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--cache-gib", type=int, default=1)
    args = parser.parse_args()
    server = ThreadingHTTPServer(("127.0.0.1", args.port), handler(Pipeline(args.model, args.cache_gib)))
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main()
