"""Turns in which the proxy runs tools, seen through openai-python and from the upstream's side."""

import json

import openai
import pytest
from conftest import ask, call, says, tool


@pytest.mark.direct
def test_plain_text(client, lab, stream):
    model = lab.script("py-plain", says("It is sunny, I think."))
    answer = ask(client, stream, model)
    assert (answer.text, answer.finish, answer.calls) == ("It is sunny, I think.", "stop", [])
    assert len(answer.ids) == 1


def test_one_owned_call_is_run_and_never_seen(client, lab, stream):
    model = lab.script(
        "py-one", says(calls=[call("get_weather", {"city": "Paris"}, "call_abc")]), says("Paris is fine.")
    )
    answer = ask(client, stream, model)
    assert (answer.text, answer.finish, answer.calls) == ("Paris is fine.", "stop", [])
    assert len(answer.ids) == 1
    first, second = lab.bodies(model)
    assert "get_weather" in [t["function"]["name"] for t in first["tools"]]
    assert first.get("parallel_tool_calls") is not False
    said, result = second["messages"][-2:]
    assert [c["id"] for c in said["tool_calls"]] == ["call_abc"]
    assert json.loads(said["tool_calls"][0]["function"]["arguments"]) == {"city": "Paris"}
    assert (result["role"], result["tool_call_id"], result["name"]) == ("tool", "call_abc", "get_weather")
    assert "Paris" in result["content"]
    assert lab.runs("get_weather") == 1


def test_the_clients_key_reaches_neither_upstream_nor_tool(client, lab, stream):
    model = lab.script("py-key", says(calls=[call("get_weather", {"city": "Paris"})]), says("ok"))
    ask(client, stream, model)
    assert "client-key" not in json.dumps(lab.journal())


def test_eight_calls_run_at_once_and_their_results_keep_the_order(client, lab, stream):
    waits = [800, 700, 600, 500, 400, 300, 200, 100]
    model = lab.script("py-eight", says(calls=[call("slow", {"ms": ms}) for ms in waits]), says("done"))
    assert ask(client, stream, model).text == "done"
    journal = lab.journal()
    assert journal["tools"]["slow"]["started"] == 8
    assert journal["tools"]["slow"]["most_at_once"] == 8
    last = lab.bodies(model)[-1]["messages"]
    said, results = last[-9], last[-8:]
    assert [r["tool_call_id"] for r in results] == [c["id"] for c in said["tool_calls"]]
    assert [json.loads(r["content"])["query"]["ms"] for r in results] == [str(ms) for ms in waits]


def test_three_rounds(client, lab, stream):
    model = lab.script(
        "py-three",
        says(calls=[call("get_weather", {"city": "Paris"})]),
        says(calls=[call("get_weather", {"city": "Lima"})]),
        says("both fine"),
    )
    answer = ask(client, stream, model)
    assert (answer.text.strip(), answer.finish) == ("both fine", "stop")
    bodies = lab.bodies(model)
    assert [len(body["messages"]) for body in bodies] == [1, 3, 5]
    assert bodies[2]["messages"][:3] == bodies[1]["messages"], "history is only appended to"


def test_text_of_every_round_reaches_the_client(client, lab, stream):
    model = lab.script(
        "py-interim", says("Let me look.", calls=[call("get_weather", {"city": "Paris"})]), says("It is fine.")
    )
    answer = ask(client, stream, model)
    assert answer.text == "Let me look.\n\nIt is fine."


@pytest.mark.direct
def test_foreign_tools_only(client, lab, stream):
    model = lab.script(
        "py-foreign", says(calls=[call("get_location", {}, "call_loc"), call("get_user", {}, "call_usr")]), says("hello")
    )
    tools = [tool("get_location"), tool("get_user")]
    user = {"role": "user", "content": "hi"}
    answer = ask(client, stream, model, [user], tools=tools)
    assert answer.calls == [("call_loc", "get_location", "{}"), ("call_usr", "get_user", "{}")]
    assert answer.finish == "tool_calls"
    results = [
        {"role": "tool", "tool_call_id": "call_usr", "content": "Ada"},
        {"role": "tool", "tool_call_id": "call_loc", "content": "Oslo"},
    ]
    assert ask(client, stream, model, [user, answer.message, *results], tools=tools).text == "hello"


def test_mixed_reply_shows_the_foreign_call_and_puts_all_results_back(client, lab, stream):
    model = lab.script(
        "py-mixed",
        says(
            calls=[
                call("get_weather", {"city": "Paris"}, "call_w1"),
                call("get_location", {}, "call_loc"),
                call("get_weather", {"city": "Lima"}, "call_w2"),
            ]
        ),
        says("all known"),
    )
    tools = [tool("get_location")]
    user = {"role": "user", "content": "hi"}
    answer = ask(client, stream, model, [user], tools=tools)
    assert [name for _, name, _ in answer.calls] == ["get_location"]
    assert answer.finish == "tool_calls"
    result = {"role": "tool", "tool_call_id": answer.calls[0][0], "content": "Oslo"}
    last = ask(client, stream, model, [user, answer.message, result], tools=tools)
    assert (last.text, last.finish, last.calls) == ("all known", "stop", [])
    messages = lab.bodies(model)[-1]["messages"]
    assert [c["id"] for c in messages[1]["tool_calls"]] == ["call_w1", "call_loc", "call_w2"]
    assert [m["tool_call_id"] for m in messages[2:]] == ["call_w1", "call_loc", "call_w2"]
    assert "Paris" in messages[2]["content"] and messages[3]["content"] == "Oslo" and "Lima" in messages[4]["content"]
    assert lab.runs("get_weather") == 2


def test_bad_calls_become_results_and_leave_the_others_alone(client, lab, stream):
    model = lab.script(
        "py-bad",
        says(
            calls=[
                call("broken"),
                call("hanging"),
                call("no_such_tool"),
                call("get_weather", '{"city": '),
                call("get_weather", {"town": "Paris"}),
                call("get_weather", {"city": "Lima"}),
            ]
        ),
        says("well"),
    )
    assert ask(client, stream, model).text == "well"
    results = [m["content"] for m in lab.bodies(model)[-1]["messages"] if m["role"] == "tool"]
    assert len(results) == 6
    assert all(r.startswith("error: ") for r in results[:5]), results
    assert "422" in results[0]
    assert "Lima" in results[5] and not results[5].startswith("error")
    assert lab.runs("get_weather") == 1, "broken arguments never reach the tool"
    assert lab.runs("hanging") == 1, "a call with effects is not tried again"


def test_a_tool_with_effects_runs_once_per_call(client, lab, stream):
    notes = [call("save_note", {"text": "a"}), call("save_note", {"text": "a"})]
    model = lab.script("py-write", says(calls=notes), says("kept"))
    assert ask(client, stream, model).text == "kept"
    assert lab.runs("save_note") == 2


def test_usage_is_the_sum_of_all_rounds(client, lab):
    script = (says(calls=[call("get_weather", {"city": "Paris"})], usage=[100, 7]), says("fine", usage=[130, 5]))
    model = lab.script("py-usage", *script)
    whole = ask(client, False, model).usage
    assert (whole.prompt_tokens, whole.completion_tokens, whole.total_tokens) == (230, 12, 242)
    streamed = ask(client, True, model, stream_options={"include_usage": True}).usage
    assert (streamed.prompt_tokens, streamed.completion_tokens, streamed.total_tokens) == (230, 12, 242)
    assert ask(client, True, model).usage is None


@pytest.mark.direct
def test_usage_of_plain_text(client, lab):
    model = lab.script("py-usage-plain", says("fine", usage=[3, 4]))
    assert ask(client, True, model, stream_options={"include_usage": True}).usage.total_tokens == 7
    assert ask(client, True, model).usage is None
    assert ask(client, False, model).usage.total_tokens == 7


def test_a_strict_tool_of_the_client_switches_parallel_calls_off(client, lab):
    model = lab.script("py-strict", says("ok"))
    strict, loose = [tool("get_location", strict=True)], [tool("get_location")]
    for tools, sent in ((strict, None), (strict, True), (loose, None), (loose, False)):
        more = {} if sent is None else {"parallel_tool_calls": sent}
        raw = client.chat.completions.with_raw_response.create(
            model=model, messages=[{"role": "user", "content": "hi"}], tools=tools, **more
        )
        decision = raw.headers["x-fanfold-parallel"]
        body = lab.bodies(model)[-1]
        serial = tools is strict or sent is False
        assert (body.get("parallel_tool_calls") is False) == serial
        assert decision.startswith("off" if serial else "on"), decision


def test_headers_tell_of_the_turn(client, lab):
    model = lab.script("py-headers", says(calls=[call("get_weather", {"city": "Paris"})]), says("ok"))
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=[{"role": "user", "content": "hi"}], extra_headers={"x-request-id": "req-of-mine"}
    )
    assert raw.headers["x-request-id"] == "req-of-mine"
    assert (raw.headers["x-fanfold-rounds"], raw.headers["x-fanfold-tool-calls"]) == ("2", "1")
    assert "server-timing" in raw.headers


def test_the_client_can_narrow_the_tools(client, lab):
    model = lab.script("py-narrow", says("ok"))
    ask(client, False, model, extra_headers={"x-fanfold-tools": "slow"})
    ask(client, False, model, extra_headers={"x-fanfold-tools": "none"})
    ask(client, False, model, extra_body={"fanfold": {"tools": ["broken"]}})
    first, second, third = lab.bodies(model)
    assert [t["function"]["name"] for t in first["tools"]] == ["slow"]
    assert "tools" not in second
    assert [t["function"]["name"] for t in third["tools"]] == ["broken"]
    assert "fanfold" not in third


def test_a_doubled_tool_name_and_several_choices_are_refused(client, lab):
    model = lab.script("py-refused", says("ok"))
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, False, model, tools=[tool("get_weather", city="string")])
    assert refused.value.code == "tool_name_conflict"
    with pytest.raises(openai.BadRequestError):
        ask(client, False, model, n=2)
    assert lab.bodies(model) == []


def test_other_paths_are_relayed(client, lab):
    echoed = client.get("/batches/b1?x=1", cast_to=object)
    assert (echoed["method"], echoed["path"]) == ("GET", "/v1/batches/b1?x=1")
    assert "client-key" not in json.dumps(echoed)
