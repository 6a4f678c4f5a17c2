"""What a real collector gets of a turn with eight parallel calls, over both protocols."""

import json

import pytest
from conftest import ask, until
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

TRACE, CLIENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def attributes(pairs):
    value = lambda pair: getattr(pair.value, pair.value.WhichOneof("value"))
    return {pair.key: value(pair) for pair in pairs}


def turn(lab, base_url, headers):
    """A turn in which the model calls eight times and then answers."""
    usage = [10, 5]
    calls = [{"name": "slow", "arguments": {"n": n}} for n in range(8)]
    rounds = [{"reply": {"calls": calls, "usage": usage}}, {"reply": {"text": "done", "usage": usage}}]
    ask(f"{lab}/_script/eight", {"rounds": rounds})
    chat = {"model": "script:eight", "messages": [{"role": "user", "content": "secret question"}]}
    answer = json.loads(ask(f"{base_url}/chat/completions", chat, headers))
    assert answer["choices"][0]["message"]["content"] == "done"


def told(lab):
    """The spans that requests said they belong to: those to the model, and those to tools."""
    journal = json.loads(ask(f"{lab}/_journal"))
    requests = [entry for entry in journal["entries"] if entry["kind"] == "request"]
    of = lambda entries: [entry["headers"]["traceparent"] for entry in entries]
    return of(e for e in requests if not e["tool"]), of(e for e in requests if e["tool"])


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("by", ["file", "environment"])
def test_eight_parallel_calls_arrive_as_a_tree(protocol, by, fanfold, lab, collector, sink):
    endpoint = f"http://127.0.0.1:{collector[protocol]}"
    if by == "file":
        base_url = fanfold({"endpoint": endpoint, "protocol": protocol, "service": "fanfold-test"})
    else:
        base_url = fanfold({}, {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": {"grpc": "grpc", "http": "http/protobuf"}[protocol],
            "OTEL_SERVICE_NAME": "fanfold-test",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        })
    turn(lab, base_url, {"traceparent": f"00-{TRACE}-{CLIENT}-01", "tracestate": "vendor=1"})
    spans = until(lambda: len(sink.spans) >= 11 and sink.spans, "eleven spans arrive")
    assert len(spans) == 11 and len({span.span_id for span in spans}) == 11
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    assert {span.trace_state for span in spans} == {"vendor=1"}
    assert all(span.status.code != Status.STATUS_CODE_ERROR for span in spans)
    resource = attributes(sink.requests[0].resource_spans[0].resource.attributes)
    assert resource["service.name"] == "fanfold-test" and resource["service.instance.id"]
    assert by == "file" or resource["deployment.environment.name"] == "test"

    named = lambda name: [span for span in spans if span.name == name]
    [whole], chats, tools = named("invoke_agent default"), named("chat script:eight"), named("execute_tool slow")
    assert (len(chats), len(tools)) == (2, 8)
    chats.sort(key=lambda span: span.start_time_unix_nano)

    # Who is below whom.
    assert whole.parent_span_id.hex() == CLIENT and whole.kind == Span.SPAN_KIND_SERVER
    assert all(chat.parent_span_id == whole.span_id and chat.kind == Span.SPAN_KIND_CLIENT for chat in chats)
    assert all(tool.parent_span_id == chats[0].span_id and tool.kind == Span.SPAN_KIND_INTERNAL for tool in tools)

    # When.
    inside = lambda span: whole.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano <= whole.end_time_unix_nano
    assert all(map(inside, spans))
    # They sleep 150 ms; on a busy machine the start of one is noted a little late.
    assert all(tool.end_time_unix_nano - tool.start_time_unix_nano >= 75_000_000 for tool in tools)
    together = min(t.end_time_unix_nano for t in tools) - max(t.start_time_unix_nano for t in tools)
    assert together > 0, "there is a time at which all eight run"
    assert max(tool.end_time_unix_nano for tool in tools) <= chats[1].start_time_unix_nano

    # What they say.
    said = attributes(whole.attributes)
    expected = {
        "gen_ai.operation.name": "invoke_agent", "gen_ai.provider.name": "openai", "gen_ai.agent.name": "default",
        "gen_ai.request.model": "script:eight", "gen_ai.usage.input_tokens": 20, "gen_ai.usage.output_tokens": 10,
        "fanfold.rounds": 2, "fanfold.tool_calls": 8, "http.response.status_code": 200,
    }
    assert expected.items() <= said.items()
    assert said["fanfold.saved_seconds"] > 0.15 * 7 * 0.5
    for number, chat in enumerate(chats, 1):
        said = attributes(chat.attributes)
        assert {"gen_ai.operation.name": "chat", "gen_ai.request.model": "script:eight", "gen_ai.usage.input_tokens": 10,
                "server.address": "127.0.0.1", "fanfold.round": number}.items() <= said.items()
        assert said["gen_ai.response.finish_reasons"].values[0].string_value == ["tool_calls", "stop"][number - 1]
    for tool in tools:
        said = attributes(tool.attributes)
        assert {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "slow", "gen_ai.tool.type": "function",
                "fanfold.effect": "read"}.items() <= said.items()
        assert said["gen_ai.tool.call.id"] and said["fanfold.wait_seconds"] >= 0
    assert not any("secret" in str(span) for span in spans), "no content unless it is wanted"

    # What was asked on behalf of a span says so.
    belongs = lambda span: f"00-{TRACE}-{span.span_id.hex()}-01"
    to_model, to_tools = told(lab)
    assert to_model == [belongs(chat) for chat in chats]
    assert sorted(to_tools) == sorted(belongs(tool) for tool in tools)


def test_a_trace_that_the_client_does_not_sample_is_not_sent(fanfold, lab, collector, sink):
    base_url = fanfold({"endpoint": f"http://127.0.0.1:{collector['http']}", "delay": "10ms"})
    unsampled = f"00-{TRACE}-{CLIENT}-00"
    turn(lab, base_url, {"traceparent": unsampled})
    turn(lab, base_url, {})
    spans = until(lambda: len(sink.spans) >= 11 and sink.spans, "the other turn's spans arrive")
    assert TRACE not in {span.trace_id.hex() for span in spans}
    to_model, to_tools = told(lab)
    assert to_model[:2] == [unsampled] * 2 and to_tools[:8] == [unsampled] * 8
