#!/usr/bin/env python3
"""The official openai package against a running server, synchronous and asynchronous.

    openai_client.py http://127.0.0.1:8080

Any model that chats will do: what is checked is the form of answers, not their sense.
"""

import asyncio
import json
import math
import sys
import time
import urllib.request

import openai

base = sys.argv[1]
client = openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0, timeout=120)
model = client.models.list().data[0].id
ask = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "large": {"type": "boolean"}},
    "required": ["city", "large"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather of a city", "parameters": SCHEMA}}


def running():
    """Requests in the engine now."""
    text = urllib.request.urlopen(f"{base}/metrics").read().decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("ernie_engine_running"))


def chat():
    whole = client.chat.completions.create(model=model, messages=ask, max_tokens=24, temperature=0, seed=1)
    choice = whole.choices[0]
    assert choice.message.role == "assistant" and choice.finish_reason in ("stop", "length")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    several = client.chat.completions.create(model=model, messages=ask, max_tokens=8, n=3, seed=5, temperature=1)
    assert [c.index for c in several.choices] == [0, 1, 2]
    stopped = client.chat.completions.create(model=model, messages=ask, max_tokens=24, temperature=0, stop=["a"])
    assert "a" not in stopped.choices[0].message.content
    return choice.message.content


def stream(expected):
    pieces, usage = [], None
    for chunk in client.chat.completions.create(
        model=model, messages=ask, max_tokens=24, temperature=0, seed=1, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        pieces += [choice.delta.content or "" for choice in chunk.choices]
    assert "".join(pieces) == expected and usage.completion_tokens > 0, (pieces, expected)


def structured():
    form = {"type": "json_schema", "json_schema": {"name": "town", "schema": SCHEMA, "strict": True}}
    answer = client.chat.completions.create(model=model, messages=ask, max_tokens=120, response_format=form, temperature=0)
    town = json.loads(answer.choices[0].message.content)
    assert set(town) == {"city", "large"} and isinstance(town["large"], bool), town
    answer = client.chat.completions.create(model=model, messages=ask, max_tokens=4, response_format=form, temperature=0)
    assert answer.choices[0].finish_reason == "length"
    # What cannot be honoured is refused by name.
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}}}
    try:
        client.chat.completions.create(model=model, messages=ask, response_format=bad)
        raise AssertionError("uniqueItems was taken")
    except openai.BadRequestError as error:
        assert "uniqueItems" in str(error), error


def tools():
    forced = {"type": "function", "function": {"name": "weather"}}
    answer = client.chat.completions.create(
        model=model, messages=ask, tools=[TOOL], tool_choice=forced, max_tokens=120, temperature=0
    )
    (call,) = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls" and call.function.name == "weather"
    assert isinstance(call.function.arguments, str) and set(json.loads(call.function.arguments)) == {"city", "large"}
    name, arguments = "", ""
    for chunk in client.chat.completions.create(
        model=model, messages=ask, tools=[TOOL], tool_choice=forced, max_tokens=120, temperature=0, stream=True
    ):
        for part in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            name, arguments = name + (part.function.name or ""), arguments + (part.function.arguments or "")
    assert (name, arguments) == ("weather", call.function.arguments), (name, arguments)
    # The result of the call goes back into the conversation.
    turn = ask + [answer.choices[0].message.model_dump(exclude_none=True)]
    turn.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})
    client.chat.completions.create(model=model, messages=turn, tools=[TOOL], max_tokens=8)


def logprobs():
    answer = client.chat.completions.create(model=model, messages=ask, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3)
    for token in answer.choices[0].logprobs.content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        # Greedy: what was written is what was likeliest.
        assert math.isclose(token.logprob, token.top_logprobs[0].logprob, abs_tol=1e-6)
    echo = client.completions.create(model=model, prompt="The capital of France is", max_tokens=1, echo=True, logprobs=1, temperature=0)
    values = echo.choices[0].logprobs.token_logprobs
    assert values[0] is None and all(value <= 0 for value in values[1:])


def embeddings():
    answer = client.embeddings.create(model=model, input=["a cat", "a dog", "the law of gravity"])
    vectors = [item.embedding for item in answer.data]
    assert [item.index for item in answer.data] == [0, 1, 2] and len({len(vector) for vector in vectors}) == 1
    for vector in vectors:
        assert math.isclose(sum(x * x for x in vector), 1, abs_tol=1e-3)


def responses():
    answer = client.responses.create(model=model, input="Say hello.", max_output_tokens=8, temperature=0)
    events = client.responses.create(model=model, input="Say hello.", max_output_tokens=8, temperature=0, stream=True)
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == answer.output_text


def errors():
    for wrong, kind in [
        ({"temperature": -1}, openai.BadRequestError),
        ({"model": "no-such-model"}, openai.NotFoundError),
        ({"n": 9999}, openai.BadRequestError),
        ({"messages": []}, openai.BadRequestError),
    ]:
        try:
            client.chat.completions.create(**({"model": model, "messages": ask} | wrong))
            raise AssertionError(f"{wrong} was taken")
        except kind as error:
            assert error.body["message"], error


async def asynchronous(expected):
    async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0, timeout=120) as client:
        create = client.chat.completions.create
        many = [create(model=model, messages=ask, max_tokens=24, temperature=0, seed=1) for _ in range(8)]
        # The same alone and in company.
        assert {answer.choices[0].message.content for answer in await asyncio.gather(*many)} == {expected}
        # One that leaves in the middle frees its place.
        form = {"type": "json_schema", "json_schema": {"name": "long", "schema": {"type": "string", "minLength": 4000}}}
        stream = await create(model=model, messages=ask, max_tokens=1500, stream=True, response_format=form)
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        assert running() > 0
        await stream.close()
        task = asyncio.create_task(create(model=model, messages=ask, max_tokens=1500, response_format=form))
        await asyncio.sleep(0.5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    end = time.monotonic() + 20
    while running() > 0:
        assert time.monotonic() < end, "requests of those who left still run"
        time.sleep(0.05)


expected = chat()
stream(expected)
structured()
tools()
logprobs()
embeddings()
responses()
errors()
asyncio.run(asynchronous(expected))
print(f"openai {openai.__version__}: chat, streams, forms, tools, log-probabilities, embeddings, responses, errors, leaving")
