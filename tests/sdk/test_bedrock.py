"""boto3: Converse, ConverseStream, InvokeModel of three families, CountTokens, exceptions; signed and with a bearer key."""

import json
import os
import socket
import ssl
import subprocess
import threading

import boto3
import botocore.exceptions
import pytest
from botocore.config import Config
from conftest import ALIAS, KEY, MODEL, PERSON, URL, WEATHER, forced, is_person, is_weather

CONFIG = Config(retries={"total_max_attempts": 1})


def client(secret=KEY, url=URL, **more):
    return boto3.client(
        "bedrock-runtime",
        region_name="us-east-1",
        endpoint_url=url,
        aws_access_key_id="any",
        aws_secret_access_key=secret,
        config=CONFIG,
        **more,
    )


CLIENT = client()
ASK = {
    "modelId": MODEL,
    "messages": [{"role": "user", "content": [{"text": "Hi"}]}],
    "inferenceConfig": {"maxTokens": 12, "temperature": 0.0},
}
TOOLS = {"tools": [{"toolSpec": {"name": "weather", "description": "Weather", "inputSchema": {"json": WEATHER}}}]}


def text(answer):
    return "".join(b["text"] for b in answer["output"]["message"]["content"])


def test_converse_and_stream_agree():
    whole = CLIENT.converse(**ASK)
    assert whole["stopReason"] in ("end_turn", "max_tokens") and whole["metrics"]["latencyMs"] >= 0
    events = list(CLIENT.converse_stream(**ASK)["stream"])
    names = [next(iter(e)) for e in events]
    assert names[0] == "messageStart" and names[-2:] == ["messageStop", "metadata"] and names[-3] == "contentBlockStop"
    assert "".join(e["contentBlockDelta"]["delta"]["text"] for e in events if "contentBlockDelta" in e) == text(whole)
    assert events[-1]["metadata"]["usage"] == whole["usage"]
    counted = CLIENT.count_tokens(modelId=MODEL, input={"converse": {"messages": ASK["messages"]}})
    assert counted["inputTokens"] == whole["usage"]["inputTokens"]


@pytest.mark.parametrize("name", [ALIAS, f"arn:aws:bedrock:us-east-1::foundation-model/{ALIAS}"])
def test_names_of_the_cloud(name):
    assert text(CLIENT.converse(**{**ASK, "modelId": name})) == text(CLIENT.converse(**ASK))


def test_system_and_stop():
    more = {"system": [{"text": "Be brief"}, {"cachePoint": {"type": "default"}}]}
    full = text(CLIENT.converse(**ASK, **more))
    stop = next(c for c in full[1:] if c.strip())
    config = {**ASK["inferenceConfig"], "stopSequences": [stop]}
    answer = CLIENT.converse(**{**ASK, **more, "inferenceConfig": config})
    assert answer["stopReason"] == "stop_sequence" and text(answer) == full[: full.index(stop)]


@forced
@pytest.mark.parametrize("choice", [{"any": {}}, {"tool": {"name": "weather"}}])
def test_tools(choice):
    ask = {**ASK, "inferenceConfig": {"maxTokens": 300, "temperature": 1.0}, "additionalModelRequestFields": {"seed": 3}}
    ask["toolConfig"] = {**TOOLS, "toolChoice": choice}
    answer = CLIENT.converse(**ask)
    assert answer["stopReason"] == "tool_use"
    calls = [b["toolUse"] for b in answer["output"]["message"]["content"] if "toolUse" in b]
    assert calls and all(c["name"] == "weather" and is_weather(c["input"]) for c in calls)
    events = list(CLIENT.converse_stream(**ask)["stream"])
    start = next(e["contentBlockStart"] for e in events if "contentBlockStart" in e)
    at = start["contentBlockIndex"]
    deltas = [e["contentBlockDelta"] for e in events if "contentBlockDelta" in e]
    streamed = "".join(d["delta"]["toolUse"]["input"] for d in deltas if d["contentBlockIndex"] == at)
    assert is_weather(json.loads(streamed))
    results = [{"toolResult": {"toolUseId": c["toolUseId"], "content": [{"json": {"sky": "blue"}}]}} for c in calls]
    turns = [*ASK["messages"], answer["output"]["message"], {"role": "user", "content": results}]
    assert CLIENT.converse(**{**ASK, "messages": turns, "toolConfig": TOOLS})["output"]
    with pytest.raises(CLIENT.exceptions.ValidationException):
        CLIENT.converse(**{**ASK, "messages": [*turns[:2], ASK["messages"][0]]})


def test_schema():
    form = {"type": "json_schema", "structure": {"jsonSchema": {"schema": json.dumps(PERSON), "name": "person"}}}
    answer = CLIENT.converse(**{**ASK, "inferenceConfig": {"maxTokens": 300}, "outputConfig": {"textFormat": form}})
    assert is_person(json.loads(text(answer)))


BODIES = {
    "anthropic": {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 12, "temperature": 0, "messages": [{"role": "user", "content": "Hi"}]},
    "llama": {"prompt": "Once", "max_gen_len": 12, "temperature": 0},
    "openai": {"max_tokens": 12, "temperature": 0, "messages": [{"role": "user", "content": "Hi"}]},
}


def invoked(family, answer):
    if family == "anthropic":
        return "".join(b["text"] for b in answer["content"]), answer["usage"]["input_tokens"]
    if family == "llama":
        return answer["generation"], answer["prompt_token_count"]
    return answer["choices"][0]["message"]["content"], answer["usage"]["prompt_tokens"]


def streamed(family, piece):
    if family == "anthropic":
        return piece.get("delta", {}).get("text", "")
    if family == "llama":
        return piece["generation"]
    return "".join(c["delta"].get("content") or "" for c in piece["choices"])


@pytest.mark.parametrize("family", BODIES)
def test_invoke(family):
    body = json.dumps(BODIES[family])
    whole, tokens = invoked(family, json.loads(CLIENT.invoke_model(modelId=MODEL, body=body)["body"].read()))
    response = CLIENT.invoke_model_with_response_stream(modelId=MODEL, body=body)
    pieces = [json.loads(e["chunk"]["bytes"]) for e in response["body"]]
    assert "".join(streamed(family, p) for p in pieces) == whole
    counted = CLIENT.count_tokens(modelId=MODEL, input={"invokeModel": {"body": body}})
    assert counted["inputTokens"] == tokens


def test_exceptions():
    for ask, kind in [
        ({**ASK, "modelId": "other"}, "ResourceNotFoundException"),
        ({**ASK, "messages": [{"role": "user", "content": [{"text": "x " * 40000}]}]}, "ValidationException"),
        ({**ASK, "messages": [{"role": "assistant", "content": [{"text": "x"}]}]}, "ValidationException"),
    ]:
        for call in (CLIENT.converse, CLIENT.converse_stream):
            with pytest.raises(botocore.exceptions.ClientError) as error:
                call(**ask)
            assert error.value.response["Error"]["Code"] == kind
    with pytest.raises(botocore.exceptions.ClientError) as error:
        client("wrong").converse(**ASK)
    assert error.value.response["Error"]["Code"] == "InvalidSignatureException"


def front(certificate):
    """A TLS front: botocore sends a bearer key only over TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    listener = context.wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True)
    host, port = URL.removeprefix("http://").split(":")

    def copy(source, target):
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def accept():
        while True:
            try:
                inner = listener.accept()[0]
            except OSError:
                return
            outer = socket.create_connection((host, int(port)))
            for pair in ((inner, outer), (outer, inner)):
                threading.Thread(target=copy, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return f"https://127.0.0.1:{listener.getsockname()[1]}"


def test_bearer(tmp_path, monkeypatch):
    certificate = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    make += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", certificate[0], "-keyout", certificate[1]]
    try:
        subprocess.run(make, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    url = front(certificate)
    signed = text(CLIENT.converse(**ASK))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for key, kind in ((KEY, None), ("wrong", "AccessDeniedException")):
        monkeypatch.setitem(os.environ, "AWS_BEARER_TOKEN_BEDROCK", key)
        bearer = boto3.Session(region_name="us-east-1").client("bedrock-runtime", endpoint_url=url, verify=str(certificate[0]), config=CONFIG)
        if kind is None:
            assert text(bearer.converse(**ASK)) == signed
            continue
        with pytest.raises(botocore.exceptions.ClientError) as error:
            bearer.converse(**ASK)
        assert error.value.response["Error"]["Code"] == kind


def test_hang_up(nothing_left):
    ask = {**ASK, "inferenceConfig": {"maxTokens": 4000, "temperature": 1.0}}
    stream = CLIENT.converse_stream(**ask)["stream"]
    next(iter(stream))
    stream.close()
