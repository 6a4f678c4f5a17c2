"""A real collector between fanfold and the test: Rotel, which takes OTLP over gRPC and HTTP.

    client ─▶ fanfold ─▶ lab (model and tools)
                 └─ OTLP ─▶ Rotel ─ OTLP over HTTP ─▶ Sink, read with OpenTelemetry's own messages
"""

import gzip
import http.server
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
import rotel
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "support"))
from ports import free_port  # noqa: E402

FANFOLD = pathlib.Path(os.environ["FANFOLD_BIN"]).resolve()
LAB = pathlib.Path(os.environ["LAB_BIN"]).resolve()
ROTEL = pathlib.Path(rotel.__file__).parent / "rotel-agent"
PATIENCE = 20


def until(what, why):
    """Waits for what must happen, and gives it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.05)
    pytest.fail(f"{why}: not within {PATIENCE} s")


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        # From another address: on its own one, a socket may connect to itself.
        probe.bind(("127.0.0.2", 0))
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ask(url, body=None, headers=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **(headers or {})})
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        return response.read()


@pytest.fixture
def start(tmp_path):
    """Starts programs, and ends them."""
    running = []

    def start(name, *command, env=None):
        log = (tmp_path / f"{name}.log").open("wb")
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=tmp_path, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )
        running.append(process)
        return process

    yield start
    for process in reversed(running):
        process.terminate()
    for process in running:
        process.wait(timeout=PATIENCE)


class Sink(http.server.ThreadingHTTPServer):
    """Keeps what the collector hands on."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Taker)
        self.requests = []

    @property
    def spans(self):
        scopes = (scope for request in self.requests for part in request.resource_spans for scope in part.scope_spans)
        return [span for scope in scopes for span in scope.spans]


class Taker(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers["content-encoding"] == "gzip":
            body = gzip.decompress(body)
        self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def sink():
    server = Sink()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def collector(start, sink, tmp_path):
    """Rotel; the port of each protocol."""
    ports = {"grpc": free_port(), "http": free_port()}
    rotel = start(
        "rotel", ROTEL, "start",
        "--otlp-grpc-endpoint", f"127.0.0.1:{ports['grpc']}", "--otlp-http-endpoint", f"127.0.0.1:{ports['http']}",
        "--exporter", "otlp", "--otlp-exporter-protocol", "http",
        "--otlp-exporter-endpoint", f"http://127.0.0.1:{sink.server_port}",
        "--batch-timeout", "50ms", "--pid-file", tmp_path / "rotel.pid",
    )
    for port in ports.values():
        until(lambda port=port: rotel.poll() is not None or is_open(port), "the collector listens")
    assert rotel.poll() is None, (tmp_path / "rotel.log").read_text()
    return ports


@pytest.fixture
def lab(start):
    port = free_port()
    start("lab", LAB, port)
    until(lambda: is_open(port), "the lab listens")
    return f"http://127.0.0.1:{port}"


@pytest.fixture
def fanfold(start, lab, tmp_path):
    """Starts fanfold with these traces; its base URL."""

    def fanfold(traces, env=None):
        port, admin = free_port(), free_port()
        parameters = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        config = {
            "listen": f"127.0.0.1:{port}",
            "admin": {"listen": f"127.0.0.1:{admin}"},
            "upstreams": {"lab": {"base_url": f"{lab}/v1"}},
            "tools": {
                "slow": {
                    "description": "Takes its time",
                    "parameters": parameters,
                    "http": {"method": "POST", "url": f"{lab}/tool/sleep/slow?ms=150"},
                    "effect": "read",
                }
            },
            "traces": traces,
        }
        file = tmp_path / "fanfold.yaml"
        file.write_text(json.dumps(config))
        start("fanfold", FANFOLD, "serve", "--config", file, env=env)
        until(lambda: is_open(port) and is_open(admin), "fanfold listens")
        return f"http://127.0.0.1:{port}/v1"

    return fanfold
