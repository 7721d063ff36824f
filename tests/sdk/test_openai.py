"""openai: chat, completions, models, errors; Azure by deployment and by its v1 path."""

import json

import openai
import pytest
from conftest import KEY, MODEL, PERSON, URL, WEATHER, forced, is_person, is_weather

PLAIN = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
AZURE = openai.AzureOpenAI(azure_endpoint=URL, api_version="2024-10-21", api_key=KEY, max_retries=0)
AZURE_DEPLOYMENT = openai.AzureOpenAI(
    azure_endpoint=URL, azure_deployment=MODEL, api_version="2024-10-21", azure_ad_token=KEY, max_retries=0
)
AZURE_V1 = openai.OpenAI(base_url=f"{URL}/openai/v1/", api_key=KEY, max_retries=0)
CLIENTS = pytest.mark.parametrize("client", [PLAIN, AZURE, AZURE_DEPLOYMENT, AZURE_V1], ids=["openai", "azure", "deployment", "v1"])
ASK = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 12, "temperature": 0}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Weather", "parameters": WEATHER}}]


@CLIENTS
def test_models(client):
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).object == "model"


@CLIENTS
def test_chat_and_stream_agree(client):
    whole = client.chat.completions.create(**ASK)
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].finish_reason in ("stop", "length")
    chunks = list(client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({(c.id, c.created) for c in chunks}) == 1


@CLIENTS
def test_completions(client):
    answer = client.completions.create(model=MODEL, prompt="Once", max_tokens=5, temperature=0)
    assert answer.usage.completion_tokens <= 5 and answer.choices[0].text is not None


@forced
def test_forced_tool():
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = PLAIN.chat.completions.create(**{**ASK, "max_tokens": 200, "temperature": 1, "seed": 3}, tools=TOOLS, tool_choice=choice)
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "weather" and is_weather(json.loads(call.function.arguments))
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    turns = [*ASK["messages"], answer.choices[0].message.model_dump(exclude_none=True), result]
    assert PLAIN.chat.completions.create(**{**ASK, "messages": turns}, tools=TOOLS).choices[0].message


def test_schema():
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    answer = PLAIN.chat.completions.create(**{**ASK, "max_tokens": 300, "temperature": 1, "seed": 5}, response_format=form)
    assert answer.choices[0].finish_reason == "stop"
    assert is_person(json.loads(answer.choices[0].message.content))


@CLIENTS
def test_errors(client):
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**{**ASK, "temperature": 3})
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(**{**ASK, "messages": [{"role": "user", "content": "x " * 40000}]})
    assert long.value.code == "context_length_exceeded"
    if client is not AZURE_DEPLOYMENT:
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(**{**ASK, "model": "other"})


def test_wrong_keys():
    for client in [
        openai.OpenAI(base_url=f"{URL}/v1", api_key="wrong", max_retries=0),
        openai.AzureOpenAI(azure_endpoint=URL, api_version="1", api_key="wrong", max_retries=0),
    ]:
        with pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(**ASK)


def test_hang_up(nothing_left):
    stream = PLAIN.chat.completions.create(**{**ASK, "max_tokens": 4000}, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
