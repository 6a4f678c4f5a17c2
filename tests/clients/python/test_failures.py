"""Failures of the upstream: openai-python must raise, and must not repeat what ran."""

import openai
import pytest
from conftest import FANFOLD_URL, ask, call, says

OUCH = {"error": {"message": "ouch", "type": "server_error", "param": None, "code": "ouch"}}


def status(code, body=OUCH, **headers):
    return {"steps": [{"answer": {"status": code, "headers": headers, "body": body}}]}


def chunk(delta, finish=None):
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


BEGUN = [chunk({"role": "assistant", "content": ""}), chunk({"content": "It is "})]
CUT = {"head": {"headers": {"content-type": "application/json"}, "framing": "length", "length": 500}}


@pytest.mark.direct
@pytest.mark.parametrize(
    "code, kind",
    [(400, openai.BadRequestError), (404, openai.NotFoundError), (422, openai.UnprocessableEntityError)],
)
def test_the_upstreams_refusal_comes_through(client, lab, stream, code, kind):
    model = lab.script(f"py-f-{code}", status(code), repeat=True)
    with pytest.raises(kind) as raised:
        ask(client, stream, model)
    assert (raised.value.code, raised.value.body["message"]) == ("ouch", "ouch")
    assert len(lab.asked(model)) == 1


def test_a_rate_limit_that_lasts_is_told_with_its_retry_after(client, lab, stream):
    model = lab.script("py-f-429", status(429, **{"retry-after": "30"}), repeat=True)
    with pytest.raises(openai.RateLimitError) as raised:
        ask(client, stream, model)
    assert 1 <= int(raised.value.response.headers["retry-after"]) <= 60


def test_a_short_trouble_is_never_seen(client, lab, stream):
    model = lab.script("py-f-once", status(503, **{"retry-after": "0"}), says("well"), advance="requests")
    assert ask(client, stream, model).text == "well"
    assert len(lab.asked(model)) == 2


def test_an_upstream_that_stays_broken_is_a_502(client, lab, stream):
    model = lab.script("py-f-500", status(500), repeat=True, advance="requests")
    with pytest.raises(openai.InternalServerError) as raised:
        ask(client, stream, model)
    assert raised.value.status_code == 502
    assert len(lab.asked(model)) <= 3


def test_our_own_key_refused_is_not_the_clients_fault(client, lab, stream):
    model = lab.script("py-f-401", status(401), repeat=True)
    with pytest.raises(openai.InternalServerError) as raised:
        ask(client, stream, model)
    assert (raised.value.status_code, raised.value.code) == (502, "upstream_auth_error")
    assert "127.0.0.1" not in str(raised.value)


@pytest.mark.direct
def test_an_error_in_the_middle_of_the_stream_raises(client, lab):
    model = lab.script("py-f-mid", {"steps": [{"events": [*BEGUN, OUCH]}]}, repeat=True)
    seen = ""
    with pytest.raises(openai.APIError):
        for event in client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "hi"}], stream=True
        ):
            seen += event.choices[0].delta.content or ""
    assert seen == "It is "


@pytest.mark.parametrize("end", ["end", "close", "reset"])
def test_a_stream_that_breaks_off_raises_whatever_way_it_ends(client, lab, end):
    steps = {"steps": [{"events": BEGUN}, {"wait_ms": 50}, end]}
    model = lab.script(f"py-f-cut-{end}", steps, repeat=True)
    with pytest.raises(openai.APIError):
        ask(client, True, model)


@pytest.mark.parametrize("end", ["end", "close", "reset"])
def test_a_relayed_stream_that_breaks_off_raises_whatever_way_it_ends(client, lab, end):
    steps = {"steps": [{"events": BEGUN}, {"wait_ms": 50}, end]}
    model = lab.script(f"py-f-relay-{end}", steps, repeat=True)
    with pytest.raises(openai.APIError) as raised:
        ask(client, True, model, extra_headers={"x-fanfold-tools": "none"})
    assert raised.value.code == "upstream_truncated"


def test_an_error_in_the_middle_of_a_relayed_stream_raises(client, lab):
    model = lab.script("py-f-relay-mid", {"steps": [{"events": [*BEGUN, OUCH]}]}, repeat=True)
    with pytest.raises(openai.APIError, match="ouch"):
        ask(client, True, model, extra_headers={"x-fanfold-tools": "none"})


def test_a_whole_answer_that_breaks_off_is_a_502(client, lab):
    both = {"whole": [CUT, {"send": '{"id":"c1",'}, "close"], "stream": [{"events": BEGUN}, "close"]}
    model = lab.script("py-f-short", both, repeat=True, advance="requests")
    with pytest.raises(openai.InternalServerError) as raised:
        ask(client, False, model)
    assert (raised.value.status_code, raised.value.code) == (502, "upstream_truncated")


def test_after_a_tool_with_effects_no_failure_invites_a_retry(lab, stream):
    client = openai.OpenAI(base_url=FANFOLD_URL + "/v1", api_key="client-key", max_retries=2, timeout=30)
    note = says(calls=[call("save_note", {"text": "once"})])
    model = lab.script("py-f-effect", note, status(500), repeat=True)
    with pytest.raises(openai.APIError) as raised:
        ask(client, stream, model)
    assert lab.runs("save_note") == 1
    if not stream:
        assert (raised.value.status_code, raised.value.code) == (424, "turn_failed_after_tools")
        assert "save_note" in str(raised.value)
