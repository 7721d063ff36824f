"""What the tests of all SDKs share: where the server is, and what is asked of it."""

import json
import os
import time
import urllib.error
import urllib.request

import pytest

URL = os.environ["SERVE_URL"]
KEY = os.environ["SERVE_KEY"]
MODEL = os.environ["SERVE_MODEL"]
ALIAS = os.environ["SERVE_ALIAS"]

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "kind": {"enum": ["a", "b"]},
        "inner": {"$ref": "#/$defs/inner"},
        "either": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 99}, {"type": "null"}]},
    },
    "required": ["name", "kind", "inner", "either"],
    "additionalProperties": False,
    "$defs": {"inner": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": False}},
}


def forces_calls():
    """Whether the server can make a model call a tool; until then the tests of it are skipped by name."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "tools": [tool], "tool_choice": "required"}
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{URL}/v1/chat/completions", json.dumps(body).encode(), headers)
    try:
        urllib.request.urlopen(request).read()
        return True
    except urllib.error.HTTPError as error:
        if "not supported yet" in error.read().decode():
            return False
        raise


forced = pytest.mark.skipif(not forces_calls(), reason="forcing a call is not supported yet")


def is_weather(arguments):
    return set(arguments) == {"city", "days"} and arguments["city"] in ("Paris", "Rome") and 1 <= arguments["days"] <= 9


def is_person(value):
    return (
        list(value) == ["name", "kind", "inner", "either"]
        and isinstance(value["name"], str)
        and value["kind"] in ("a", "b")
        and isinstance(value["inner"]["on"], bool)
        and (value["either"] is None or 0 <= value["either"] <= 99)
    )


def running():
    """Requests in the batch, as the server counts them."""
    request = urllib.request.Request(f"{URL}/metrics", headers={"Authorization": f"Bearer {KEY}"})
    text = urllib.request.urlopen(request).read().decode()
    line = next(l for l in text.splitlines() if l.startswith("dualgauge_requests_running{"))
    return float(line.split()[-1])


@pytest.fixture
def nothing_left():
    """After the test no request may run: who hangs up frees the slot."""
    yield
    for _ in range(100):
        if running() == 0:
            return
        time.sleep(0.05)
    raise AssertionError("requests still run")
