"""anthropic: messages, events, tools, schemas, counts, errors."""

import json

import anthropic
import pytest
from conftest import KEY, MODEL, PERSON, URL, WEATHER, forced, is_person, is_weather

CLIENT = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
BEARER = anthropic.Anthropic(base_url=f"{URL}/anthropic", auth_token=KEY, max_retries=0)
ASK = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 12, "extra_body": {"temperature": 0}}
TOOLS = [{"name": "weather", "description": "Weather", "input_schema": WEATHER}]


@pytest.mark.parametrize("client", [CLIENT, BEARER], ids=["key", "bearer"])
def test_message_and_stream_agree(client):
    whole = client.messages.create(**ASK)
    assert whole.stop_reason in ("end_turn", "max_tokens")
    with client.messages.stream(**ASK) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    assert [b.text for b in final.content] == [b.text for b in whole.content]
    assert final.usage.output_tokens == whole.usage.output_tokens
    counted = client.messages.count_tokens(model=MODEL, messages=ASK["messages"])
    assert counted.input_tokens == whole.usage.input_tokens == final.usage.input_tokens


def test_models():
    assert [model.id for model in CLIENT.models.list()] == [MODEL]
    assert CLIENT.models.retrieve(MODEL).type == "model"


def test_stop_sequence():
    text = CLIENT.messages.create(**ASK).content[0].text
    stop = next(c for c in text[1:] if c.strip())
    answer = CLIENT.messages.create(**ASK, stop_sequences=[stop])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)
    assert "".join(b.text for b in answer.content) == text[: text.index(stop)]


@forced
def test_tools():
    ask = {**ASK, "max_tokens": 300, "extra_body": {"temperature": 1, "seed": 3}}
    for choice in [{"type": "any"}, {"type": "tool", "name": "weather"}]:
        answer = CLIENT.messages.create(**ask, tools=TOOLS, tool_choice=choice)
        assert answer.stop_reason == "tool_use"
        call = next(b for b in answer.content if b.type == "tool_use")
        assert call.name == "weather" and is_weather(call.input)
        with CLIENT.messages.stream(**ask, tools=TOOLS, tool_choice=choice) as stream:
            streamed = next(b for b in stream.get_final_message().content if b.type == "tool_use")
        assert is_weather(streamed.input)
    turns = [
        *ASK["messages"],
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": b.id, "content": "sunny"} for b in answer.content if b.type == "tool_use"]},
    ]
    assert CLIENT.messages.create(**{**ASK, "messages": turns}, tools=TOOLS).type == "message"
    counted = CLIENT.messages.count_tokens(model=MODEL, messages=turns, tools=TOOLS, system="Be brief")
    answer = CLIENT.messages.create(**{**ASK, "messages": turns}, tools=TOOLS, system="Be brief")
    assert counted.input_tokens == answer.usage.input_tokens


def test_schema():
    form = {"format": {"type": "json_schema", "schema": PERSON}}
    answer = CLIENT.messages.create(**{**ASK, "max_tokens": 300}, output_config=form)
    assert is_person(json.loads(answer.content[0].text))


def test_errors():
    with pytest.raises(anthropic.BadRequestError):
        CLIENT.messages.create(**{**ASK, "extra_body": {"temperature": 2}})
    with pytest.raises(anthropic.NotFoundError):
        CLIENT.messages.create(**{**ASK, "model": "other"})
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=URL, api_key="wrong", max_retries=0).messages.create(**ASK)
    with pytest.raises(anthropic.BadRequestError):
        CLIENT.messages.create(**{**ASK, "messages": [{"role": "user", "content": "x " * 40000}]})


def test_hang_up(nothing_left):
    with CLIENT.messages.stream(**{**ASK, "max_tokens": 4000, "extra_body": {"temperature": 1}}) as stream:
        next(iter(stream))
