"""Bodies of every API with something wrong in them: whatever it is, the answer is the client's error and never the server's."""

import http.client
import json
import random
from collections import Counter

from conftest import KEY, MODEL, URL

REQUESTS = 3000
TEXT = [{"role": "user", "content": "a"}]
OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}}
CALL = {"toolUse": {"toolUseId": "x", "name": "f", "input": {}}}
RESULT = {"toolResult": {"toolUseId": "x", "content": [{"json": {}}]}}
SEEDS = [
    ("/v1/chat/completions", {"model": MODEL, "messages": TEXT, "max_tokens": 3, "stop": ["q"]}),
    (f"/openai/deployments/{MODEL}/chat/completions?api-version=1", {"messages": TEXT, "max_tokens": 3}),
    (
        "/v1/responses",
        {
            "model": MODEL,
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "z"},
            ],
            "max_output_tokens": 3,
            "tools": [{"type": "function", "name": "f", "parameters": OBJECT}],
            "text": {"format": {"type": "text"}},
            "truncation": "auto",
        },
    ),
    (
        "/v1/messages",
        {
            "model": MODEL,
            "max_tokens": 3,
            "system": [{"type": "text", "text": "s"}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}]},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "x", "name": "f", "input": {}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": "y"}]},
            ],
            "tools": [{"name": "f", "input_schema": OBJECT}],
            "thinking": {"type": "enabled"},
        },
    ),
    (
        f"/v1beta/models/{MODEL}:generateContent",
        {
            "contents": [
                {"role": "user", "parts": [{"text": "a"}]},
                {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}}]},
                {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {}}}]},
            ],
            "generationConfig": {"maxOutputTokens": 3, "candidateCount": 2},
            "tools": [{"functionDeclarations": [{"name": "f", "parameters": {"type": "OBJECT"}}]}],
        },
    ),
    (
        "/api/chat",
        {
            "model": MODEL,
            "messages": [*TEXT, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}, {"role": "tool", "content": "z", "tool_name": "f"}],
            "options": {"num_predict": 3, "stop": ["a"], "num_ctx": 300},
            "format": OBJECT,
        },
    ),
    ("/api/generate", {"model": MODEL, "prompt": "a", "context": [1, 2], "options": {"num_predict": 3}}),
    (
        f"/model/{MODEL}/converse",
        {
            "messages": [{"role": "user", "content": [{"text": "a"}]}, {"role": "assistant", "content": [CALL]}, {"role": "user", "content": [RESULT]}],
            "inferenceConfig": {"maxTokens": 3},
            "toolConfig": {"tools": [{"toolSpec": {"name": "f", "inputSchema": {"json": OBJECT}}}]},
        },
    ),
    (f"/model/{MODEL}/invoke", {"prompt": "a", "max_gen_len": 3}),
    (f"/model/{MODEL}/invoke-with-response-stream", {"anthropic_version": "x", "max_tokens": 3, "messages": TEXT}),
    (f"/model/{MODEL}/count-tokens", {"input": {"converse": {"messages": [{"role": "user", "content": [{"text": "a"}]}]}}}),
]
WRONG = [None, True, 0, -1, 1.5, 1e300, 2**63, "", "\u0000", "💥" * 50, [], {}, [[]], [None], {"type": None}, "<|im_end|>"]


def mutated(value, chance):
    if chance.random() < 0.12:
        return chance.choice(WRONG)
    if isinstance(value, dict):
        return {key if chance.random() > 0.02 else f"{key}s": mutated(v, chance) for key, v in value.items() if chance.random() > 0.04}
    if isinstance(value, list):
        return [mutated(v, chance) for v in value]
    return value


def test_nothing_wrong_is_the_servers_fault():
    chance = random.Random(1)
    connection = http.client.HTTPConnection(URL.removeprefix("http://"), timeout=60)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    seen = Counter()
    for _ in range(REQUESTS):
        path, seed = chance.choice(SEEDS)
        body = json.dumps(mutated(seed, chance)).encode()
        if chance.random() < 0.05:
            body = body[: chance.randrange(len(body) + 1)]
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        said = response.read()
        assert response.status < 500, (path, body, said)
        assert response.status == 200 or json.loads(said), (path, body, said)
        seen[response.status] += 1
    assert seen[200] > 100 and seen[400] > 100, seen
