"""ollama: chat, generate, lists, tools, schemas, errors."""

import json

import ollama
import pytest
from conftest import KEY, MODEL, PERSON, URL, WEATHER, is_person

CLIENT = ollama.Client(host=URL, headers={"Authorization": f"Bearer {KEY}"})
ASK = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "options": {"temperature": 0, "num_predict": 12}}


def test_chat_and_stream_agree():
    whole = CLIENT.chat(**ASK)
    pieces = list(CLIENT.chat(**ASK, stream=True))
    assert "".join(p.message.content or "" for p in pieces) == whole.message.content
    assert pieces[-1].done and pieces[-1].eval_count == whole.eval_count
    assert whole.done_reason in ("stop", "length") and whole.total_duration >= 0


def test_generate():
    whole = CLIENT.generate(model=f"{MODEL}:latest", prompt="Hi", options=ASK["options"])
    pieces = list(CLIENT.generate(model=MODEL, prompt="Hi", options=ASK["options"], stream=True))
    assert "".join(p.response or "" for p in pieces) == whole.response
    assert list(pieces[-1].context) == list(whole.context)
    assert CLIENT.generate(model=MODEL).done_reason == "load"


def test_what_editors_ask():
    assert [m.model for m in CLIENT.list().models] == [MODEL]
    shown = CLIENT.show(MODEL)
    assert "completion" in shown.capabilities and shown.modelinfo["general.architecture"]
    assert CLIENT.ps().models[0].model == MODEL


def test_tools():
    tool = {"type": "function", "function": {"name": "weather", "description": "Weather", "parameters": WEATHER}}
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Rome", "days": 1}}}]}
    result = {"role": "tool", "tool_name": "weather", "content": "sunny"}
    answer = CLIENT.chat(**{**ASK, "messages": [*ASK["messages"], call, result]}, tools=[tool])
    assert answer.done


def test_schema():
    ask = {**ASK, "options": {"temperature": 0, "num_predict": 300}}
    assert is_person(json.loads(CLIENT.chat(**ask, format=PERSON).message.content))


def test_errors():
    with pytest.raises(ollama.ResponseError) as lost:
        CLIENT.chat(**{**ASK, "model": "other"})
    assert lost.value.status_code == 404
    with pytest.raises(ollama.ResponseError) as wrong:
        CLIENT.chat(**{**ASK, "options": {"temperature": -1}})
    assert wrong.value.status_code == 400
    with pytest.raises(ollama.ResponseError) as closed:
        ollama.Client(host=URL).chat(**ASK)
    assert closed.value.status_code == 401


def test_hang_up(nothing_left):
    stream = CLIENT.chat(**{**ASK, "options": {"temperature": 1}}, stream=True)
    next(stream)
    stream.close()
