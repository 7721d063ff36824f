"""google-genai: content, streams, tools, schemas, counts, errors."""

import json

import pytest
from conftest import KEY, MODEL, PERSON, URL, WEATHER, forced, is_person, is_weather
from google import genai
from google.genai import errors, types


def client(key=KEY, **options):
    return genai.Client(api_key=key, http_options=types.HttpOptions(base_url=URL, **options))


CLIENT = client()
CONFIG = {"temperature": 0, "max_output_tokens": 12}


@pytest.mark.parametrize("version", [None, "v1beta", "v1"])
def test_content_and_stream_agree(version):
    client_ = client(api_version=version) if version else CLIENT
    whole = client_.models.generate_content(model=MODEL, contents="Hi", config=CONFIG)
    pieces = list(client_.models.generate_content_stream(model=MODEL, contents="Hi", config=CONFIG))
    assert "".join(p.text or "" for p in pieces) == whole.text
    assert pieces[-1].usage_metadata.total_token_count == whole.usage_metadata.total_token_count
    counted = client_.models.count_tokens(model=MODEL, contents="Hi")
    assert counted.total_tokens == whole.usage_metadata.prompt_token_count


def test_models():
    assert [model.name for model in CLIENT.models.list()] == [f"models/{MODEL}"]
    assert CLIENT.models.get(model=MODEL).input_token_limit > 0


def test_chat():
    chat = CLIENT.chats.create(model=MODEL, config=CONFIG)
    assert chat.send_message("Hi").candidates
    assert chat.send_message("And now?").candidates


@forced
def test_tools():
    function = types.FunctionDeclaration(name="weather", description="Weather", parameters_json_schema=WEATHER)
    config = types.GenerateContentConfig(
        temperature=1,
        seed=3,
        max_output_tokens=300,
        tools=[types.Tool(function_declarations=[function])],
        tool_config=types.ToolConfig(function_calling_config=types.FunctionCallingConfig(mode="ANY", allowed_function_names=["weather"])),
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
    )
    answer = CLIENT.models.generate_content(model=MODEL, contents="Hi", config=config)
    calls = answer.function_calls
    assert calls and all(c.name == "weather" and is_weather(c.args) for c in calls)
    pieces = list(CLIENT.models.generate_content_stream(model=MODEL, contents="Hi", config=config))
    assert any(is_weather(c.args) for p in pieces for c in p.function_calls or [])
    contents = [
        types.Content(role="user", parts=[types.Part(text="Hi")]),
        answer.candidates[0].content,
        types.Content(role="user", parts=[types.Part.from_function_response(name="weather", response={"sky": "blue"}) for _ in calls]),
    ]
    assert CLIENT.models.generate_content(model=MODEL, contents=contents, config=CONFIG).candidates


def test_schemas():
    config = {"temperature": 0, "max_output_tokens": 300, "response_mime_type": "application/json", "response_json_schema": PERSON}
    answer = CLIENT.models.generate_content(model=MODEL, contents="Hi", config=config)
    assert is_person(json.loads(answer.text))
    schema = {"type": "OBJECT", "properties": {"a": {"type": "INTEGER", "minimum": 0, "maximum": 9}}, "required": ["a"]}
    config = {"temperature": 0, "max_output_tokens": 100, "response_mime_type": "application/json", "response_schema": schema}
    assert 0 <= json.loads(CLIENT.models.generate_content(model=MODEL, contents="Hi", config=config).text)["a"] <= 9
    config = {"response_mime_type": "text/x.enum", "response_schema": {"type": "STRING", "enum": ["red", "blue"]}}
    assert CLIENT.models.generate_content(model=MODEL, contents="Hi", config=config).text in ("red", "blue")


def test_errors():
    wrong = client("wrong")
    for ask, code in [
        (lambda: CLIENT.models.generate_content(model=MODEL, contents="Hi", config={"temperature": 3}), 400),
        (lambda: CLIENT.models.generate_content(model="other", contents="Hi"), 404),
        (lambda: wrong.models.generate_content(model=MODEL, contents="Hi"), 400),
        (lambda: CLIENT.models.generate_content(model=MODEL, contents="x " * 40000), 400),
    ]:
        with pytest.raises(errors.ClientError) as error:
            ask()
        assert error.value.code == code


def test_hang_up(nothing_left):
    config = {"temperature": 1, "max_output_tokens": 4000}
    stream = CLIENT.models.generate_content_stream(model=MODEL, contents="Hi", config=config)
    next(stream)
    stream.close()
