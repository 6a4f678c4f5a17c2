"""What the tests share: a client of the proxy, the lab's controls, and one shape for all answers.

FANFOLD_URL is the proxy (or the lab itself, for tests marked `direct`), LAB_URL the lab.
"""

import json
import os
import urllib.request
from dataclasses import dataclass, field

import openai
import pytest

FANFOLD_URL = os.environ["FANFOLD_URL"].rstrip("/")
LAB_URL = os.environ["LAB_URL"].rstrip("/")


class Lab:
    """The lab's controls."""

    def _call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(LAB_URL + path, data=data, method=method)
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    def script(self, name, *rounds, **options):
        """Registers a script and returns the model that plays it."""
        self._call("POST", f"/_script/{name}", {"rounds": list(rounds), **options})
        return f"script:{name}"

    def journal(self):
        return self._call("GET", "/_journal")

    def clear(self):
        self._call("DELETE", "/_journal")

    def asked(self, model):
        """The requests a script got, in order."""
        name = model.removeprefix("script:")
        entries = self.journal()["entries"]
        return [e for e in entries if e["kind"] == "request" and e["script"] == name]

    def bodies(self, model):
        return [entry["body"] for entry in self.asked(model)]

    def runs(self, tool):
        """How often a tool was started."""
        return self.journal()["tools"].get(tool, {}).get("started", 0)


@pytest.fixture
def lab():
    lab = Lab()
    lab.clear()
    return lab


@pytest.fixture
def client():
    return openai.OpenAI(base_url=FANFOLD_URL + "/v1", api_key="client-key", max_retries=0, timeout=30)


@pytest.fixture(params=[True, False], ids=["stream", "whole"])
def stream(request):
    return request.param


@dataclass
class Answer:
    """What came back, streamed or whole."""

    text: str = ""
    calls: list = field(default_factory=list)
    finish: str | None = None
    usage: object = None
    ids: set = field(default_factory=set)
    message: dict = field(default_factory=dict)


def ask(client, stream, model, messages=None, **more):
    """One question; the answer has the same shape either way."""
    messages = messages or [{"role": "user", "content": "hi"}]
    if stream:
        return fold(client.chat.completions.create(model=model, messages=messages, stream=True, **more))
    whole = client.chat.completions.create(model=model, messages=messages, **more)
    choice = whole.choices[0]
    calls = [(c.id, c.function.name, c.function.arguments) for c in choice.message.tool_calls or []]
    return Answer(
        text=choice.message.content or "",
        calls=calls,
        finish=choice.finish_reason,
        usage=whole.usage,
        ids={whole.id},
        message=assistant(choice.message.content, calls),
    )


def fold(chunks):
    """Joins a stream, and holds it to what every client relies on."""
    answer, calls, finishes = Answer(), {}, []
    for number, chunk in enumerate(chunks):
        assert chunk.object == "chat.completion.chunk"
        answer.ids.add(chunk.id)
        if chunk.usage:
            assert answer.usage is None, "usage is told once"
            answer.usage = chunk.usage
        for choice in chunk.choices:
            if number == 0:
                assert choice.delta.role == "assistant", "the role goes first"
            answer.text += choice.delta.content or ""
            for delta in choice.delta.tool_calls or []:
                call = calls.setdefault(delta.index, ["", "", ""])
                call[0] = delta.id or call[0]
                call[1] = delta.function.name or call[1]
                call[2] += delta.function.arguments or ""
            if choice.finish_reason:
                finishes.append(choice.finish_reason)
    assert len(finishes) == 1, f"exactly one finish_reason, not {finishes}"
    assert list(calls) == list(range(len(calls))), "indices count from 0"
    answer.finish = finishes[0]
    answer.calls = [tuple(call) for call in calls.values()]
    answer.message = assistant(answer.text or None, answer.calls)
    return answer


def assistant(text, calls):
    message = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for id, name, arguments in calls
        ]
    return message


def tool(name, strict=None, **properties):
    """A tool the client declares."""
    parameters = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": list(properties),
        "additionalProperties": False,
    }
    function = {"name": name, "description": name, "parameters": parameters}
    if strict is not None:
        function["strict"] = strict
    return {"type": "function", "function": function}


def call(name, arguments=None, id=None):
    """A call in a script."""
    made = {"name": name, "arguments": {} if arguments is None else arguments}
    return made if id is None else {**made, "id": id}


def says(text=None, calls=None, **more):
    """A round of a script."""
    reply = {**more}
    if text is not None:
        reply["text"] = text
    if calls is not None:
        reply["calls"] = calls
    return {"reply": reply}
