"""openai: the Responses API, stateful, streamed, with tools and schemas; on Azure's paths too."""

import json

import openai
import pytest
from conftest import MODEL, PERSON, WEATHER, forced, is_person, is_weather
from test_openai import AZURE, AZURE_V1, PLAIN

ASK = {"model": MODEL, "input": "Hi", "max_output_tokens": 12, "temperature": 0}
TOOLS = [{"type": "function", "name": "weather", "description": "Weather", "parameters": WEATHER, "strict": True}]


@pytest.mark.parametrize("client", [PLAIN, AZURE, AZURE_V1], ids=["openai", "azure", "v1"])
def test_response_and_stream_agree(client):
    whole = client.responses.create(**ASK)
    events = list(client.responses.create(**ASK, stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[-1].type in ("response.completed", "response.incomplete")
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert events[-1].response.usage.output_tokens == whole.usage.output_tokens
    assert client.responses.retrieve(whole.id).output_text == whole.output_text
    counted = client.responses.input_tokens.count(model=MODEL, input="Hi")
    assert counted.input_tokens == whole.usage.input_tokens


def test_goes_on():
    first = PLAIN.responses.create(**ASK)
    second = PLAIN.responses.create(**{**ASK, "input": "More"}, previous_response_id=first.id)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": first.output_text}, {"role": "user", "content": "More"}]
    assert PLAIN.responses.create(**{**ASK, "input": turns}).output_text == second.output_text
    assert len(list(PLAIN.responses.input_items.list(first.id))) == 1
    PLAIN.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        PLAIN.responses.retrieve(first.id)


@forced
@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}], ids=["required", "named"])
def test_tools(choice):
    ask = {**ASK, "max_output_tokens": 300, "temperature": 1, "extra_body": {"seed": 3}, "tools": TOOLS, "tool_choice": choice}
    answer = PLAIN.responses.create(**ask)
    calls = [item for item in answer.output if item.type == "function_call"]
    assert calls and all(is_weather(json.loads(call.arguments)) for call in calls)
    events = list(PLAIN.responses.create(**ask, stream=True))
    done = next(e for e in events if e.type == "response.function_call_arguments.done")
    assert is_weather(json.loads(done.arguments))
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"} for call in calls]
    assert PLAIN.responses.create(**{**ASK, "input": results}, previous_response_id=answer.id, tools=TOOLS).output is not None


def test_schema():
    form = {"format": {"type": "json_schema", "name": "person", "schema": PERSON, "strict": True}}
    answer = PLAIN.responses.create(**{**ASK, "max_output_tokens": 300}, text=form)
    assert answer.status == "completed" and is_person(json.loads(answer.output_text))


def test_errors():
    with pytest.raises(openai.BadRequestError):
        PLAIN.responses.create(**{**ASK, "temperature": 3})
    with pytest.raises(openai.NotFoundError):
        PLAIN.responses.create(**{**ASK, "model": "other"})


def test_hang_up(nothing_left):
    with PLAIN.responses.create(**{**ASK, "max_output_tokens": 4000, "temperature": 1}, stream=True) as stream:
        next(iter(stream))
