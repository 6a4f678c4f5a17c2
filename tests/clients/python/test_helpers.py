"""openai-python's own helpers on top of the proxy: `.stream()`, `.parse()`, the async client."""

import asyncio
import os

import openai
import pytest
from conftest import call, says
from pydantic import BaseModel

HI = [{"role": "user", "content": "hi"}]


class Weather(BaseModel):
    city: str
    celsius: int


class Locate(BaseModel):
    exact: bool


@pytest.mark.direct
def test_stream_helper_with_plain_text(client, lab):
    model = lab.script("py-h-plain", says("one two three four five"))
    with client.chat.completions.stream(model=model, messages=HI) as events:
        deltas = [event.delta for event in events if event.type == "content.delta"]
        final = events.get_final_completion()
    assert "".join(deltas) == "one two three four five" and len(deltas) > 1
    assert final.choices[0].message.content == "one two three four five"


def test_stream_helper_over_owned_calls(client, lab):
    model = lab.script("py-h-owned", says(calls=[call("get_weather", {"city": "Paris"})]), says("fine"))
    with client.chat.completions.stream(model=model, messages=HI) as events:
        final = events.get_final_completion()
    assert final.choices[0].message.content == "fine"
    assert not final.choices[0].message.tool_calls


def test_stream_helper_over_a_mixed_reply(client, lab):
    model = lab.script(
        "py-h-mixed", says(calls=[call("get_weather", {"city": "Paris"}), call("locate", {"exact": True}, "call_l")])
    )
    tools = [openai.pydantic_function_tool(Locate, name="locate")]
    with client.chat.completions.stream(model=model, messages=HI, tools=tools) as events:
        done = [e for e in events if e.type == "tool_calls.function.arguments.done"]
        final = events.get_final_completion()
    assert [(event.name, event.index) for event in done] == [("locate", 0)]
    (made,) = final.choices[0].message.tool_calls
    assert (made.id, made.function.parsed_arguments) == ("call_l", Locate(exact=True))


@pytest.mark.direct
def test_parse_of_a_structured_answer(client, lab):
    model = lab.script("py-h-parse", says('{"city":"Paris","celsius":18}'))
    answer = client.chat.completions.parse(model=model, messages=HI, response_format=Weather)
    assert answer.choices[0].message.parsed == Weather(city="Paris", celsius=18)


def test_parse_after_owned_calls(client, lab):
    model = lab.script(
        "py-h-parse-owned", says(calls=[call("get_weather", {"city": "Paris"})]), says('{"city":"Paris","celsius":18}')
    )
    answer = client.chat.completions.parse(model=model, messages=HI, response_format=Weather)
    assert answer.choices[0].message.parsed == Weather(city="Paris", celsius=18)
    first = lab.bodies(model)[0]
    assert first["response_format"]["json_schema"]["strict"] is True
    assert first.get("parallel_tool_calls") is not False, "a strict answer is no strict tool"


@pytest.mark.direct
def test_parse_of_a_strict_foreign_call(client, lab):
    model = lab.script("py-h-strict", says(calls=[call("locate", {"exact": False})]))
    tools = [openai.pydantic_function_tool(Locate, name="locate")]
    answer = client.chat.completions.parse(model=model, messages=HI, tools=tools)
    assert answer.choices[0].message.tool_calls[0].function.parsed_arguments == Locate(exact=False)


def test_many_turns_at_once_on_the_async_client(lab):
    model = lab.script(
        "py-h-async", says(calls=[call("slow", {"ms": 50}), call("slow", {"ms": 60})]), says("done")
    )

    async def turns():
        url = os.environ["FANFOLD_URL"] + "/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="client-key", max_retries=0, timeout=30) as client:
            one = lambda: client.chat.completions.create(model=model, messages=HI)
            return await asyncio.gather(*(one() for _ in range(20)))

    answers = asyncio.run(turns())
    assert [answer.choices[0].message.content for answer in answers] == ["done"] * 20
    assert len({answer.id for answer in answers}) >= 1
    assert lab.runs("slow") == 40
