"""What frameworks make of the SDKs: litellm, langchain, pydantic-ai, openai-agents, strands."""

import asyncio
import os

import pytest
from conftest import KEY, MODEL, URL, forced, is_weather

os.environ.setdefault("OPENAI_AGENTS_DISABLE_TRACING", "1")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("OTEL_SDK_DISABLED", "true")


@pytest.mark.parametrize(
    "model, base",
    [
        (f"openai/{MODEL}", f"{URL}/v1"),
        (f"anthropic/{MODEL}", URL),
        (f"gemini/{MODEL}", f"{URL}/v1beta"),
        (f"ollama_chat/{MODEL}", URL),
        (f"azure/{MODEL}", URL),
    ],
    ids=["openai", "anthropic", "gemini", "ollama", "azure"],
)
def test_litellm(model, base):
    litellm = pytest.importorskip("litellm")
    ask = {"model": model, "api_base": base, "api_key": KEY, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 12, "temperature": 0}
    if model.startswith("azure"):
        ask["api_version"] = "2024-10-21"
    if model.startswith("ollama"):
        ask["headers"] = {"Authorization": f"Bearer {KEY}"}
    whole = litellm.completion(**ask)
    pieces = list(litellm.completion(**ask, stream=True))
    text = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert text == (whole.choices[0].message.content or "") and whole.usage.prompt_tokens > 0


def test_langchain_openai():
    module = pytest.importorskip("langchain_openai")
    chat = module.ChatOpenAI(base_url=f"{URL}/v1", api_key=KEY, model=MODEL, temperature=0, max_tokens=12)
    whole = chat.invoke("Hi")
    assert "".join(str(p.content) for p in chat.stream("Hi")) == whole.content
    assert whole.usage_metadata["input_tokens"] > 0


def test_langchain_aws():
    module = pytest.importorskip("langchain_aws")
    chat = module.ChatBedrockConverse(
        model=MODEL,
        provider="anthropic",
        region_name="us-east-1",
        endpoint_url=URL,
        aws_access_key_id="any",
        aws_secret_access_key=KEY,
        temperature=0,
        max_tokens=12,
    )
    whole = chat.invoke("Hi")
    pieces = list(chat.stream("Hi"))
    assert pieces and whole.usage_metadata["input_tokens"] > 0


def pydantic_models():
    pytest.importorskip("pydantic_ai")
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.anthropic import AnthropicProvider
    from pydantic_ai.providers.openai import OpenAIProvider

    openai = OpenAIProvider(base_url=f"{URL}/v1", api_key=KEY)
    import anthropic

    client = anthropic.AsyncAnthropic(base_url=URL, api_key=KEY)
    return {
        "chat": lambda: OpenAIChatModel(MODEL, provider=openai),
        "responses": lambda: OpenAIResponsesModel(MODEL, provider=openai),
        "anthropic": lambda: AnthropicModel(MODEL, provider=AnthropicProvider(anthropic_client=client)),
    }


@forced
@pytest.mark.parametrize("kind", ["chat", "responses", "anthropic"])
def test_pydantic_ai(kind):
    make = pydantic_models()[kind]
    from typing import Literal

    from pydantic import BaseModel, Field
    from pydantic_ai import Agent

    class Weather(BaseModel):
        city: Literal["Paris", "Rome"]
        days: int = Field(ge=1, le=9)

    agent = Agent(make(), output_type=Weather, model_settings={"temperature": 0.0, "max_tokens": 300}, retries=2)
    output = agent.run_sync("Hi").output
    assert is_weather(output.model_dump())


def test_openai_agents():
    agents = pytest.importorskip("agents")
    from typing import Literal

    import openai
    from pydantic import BaseModel

    class Weather(BaseModel):
        city: Literal["Paris", "Rome"]
        days: Literal[1, 2, 3]

    client = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY)
    settings = agents.ModelSettings(temperature=0, max_tokens=300)

    async def ask(model):
        agent = agents.Agent(name="a", instructions="Be brief", model=model, model_settings=settings, output_type=Weather)
        return (await agents.Runner.run(agent, "Hi")).final_output

    async def both():
        responses = agents.OpenAIResponsesModel(model=MODEL, openai_client=client)
        chat = agents.OpenAIChatCompletionsModel(model=MODEL, openai_client=client)
        return [await ask(responses), await ask(chat)]

    assert all(is_weather(output.model_dump()) for output in asyncio.run(both()))


def test_strands():
    strands = pytest.importorskip("strands")
    import boto3
    from strands.models import BedrockModel

    session = boto3.Session(aws_access_key_id="any", aws_secret_access_key=KEY, region_name="us-east-1")
    model = BedrockModel(model_id=MODEL, endpoint_url=URL, boto_session=session, temperature=0.0, max_tokens=12, streaming=True)
    try:
        result = strands.Agent(model=model, callback_handler=None)("Hi")
        assert result.stop_reason == "end_turn"
    except strands.types.exceptions.MaxTokensReachedException:
        pass  # The answer was cut off, as was asked for.
