"""A real Prometheus scrapes fanfold's demo under load; every query of the dashboard and every rule is asked of it."""

import json
import math
import subprocess
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from conftest import DEPLOY, FANFOLD, free_port, tool

# Panels whose metrics only appear when something goes wrong.
MAY_BE_EMPTY = {"Asked again", "Limits reached"}


def get(url: str, limit: float = 5):
    with urllib.request.urlopen(url, timeout=limit) as answer:
        return answer.read()


def until(what, limit: float = 60):
    """Waits until `what` gives something."""
    end, last = time.monotonic() + limit, None
    while time.monotonic() < end:
        try:
            if found := what():
                return found
        except OSError as error:
            last = error
        time.sleep(0.2)
    raise AssertionError(f"not within {limit} s: {what}, {last}")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prometheus")
    port, admin, own = free_port(), free_port(), free_port()
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(path) for path in sorted((DEPLOY / "prometheus").glob("*.yaml"))],
        "scrape_configs": [{"job_name": "fanfold", "static_configs": [{"targets": [f"127.0.0.1:{admin}"]}]}],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    commands = [
        [FANFOLD, "demo", "--listen", f"127.0.0.1:{port}", "--admin-listen", f"127.0.0.1:{admin}"],
        [tool("prometheus"), f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data",
         f"--web.listen-address=127.0.0.1:{own}"],
    ]
    with open(folder / "log", "w") as log:
        children = [subprocess.Popen([str(c) for c in command], stdout=log, stderr=log) for command in commands]
    base = f"http://127.0.0.1:{own}"
    try:
        until(lambda: get(f"http://127.0.0.1:{admin}/readyz"))
        until(lambda: get(f"{base}/-/ready"))

        def turn(n: int):
            body = {"model": "demo", "stream": n % 2 == 0,
                    "messages": [{"role": "user", "content": "What is the weather in Paris, Tokyo and Lima?"}]}
            request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(),
                                             {"content-type": "application/json"})
            return b"Lima" in urllib.request.urlopen(request, timeout=30).read()

        # Three calls each: more than the 64 a team may run at once, so that some wait.
        with ThreadPoolExecutor(32) as pool:
            answers = pool.map(turn, range(128))
            assert all(answers)
        for counted in [
            'sum(fanfold_turns_total{outcome="ok"}) >= 128',
            "sum(fanfold_tool_seconds_saved_total) > 10",
            "sum(fanfold_tool_wait_seconds_sum) > 0.1",
        ]:
            until(lambda: ask(base, counted))
        yield base
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait(timeout=30)


def ask(base: str, query: str):
    answer = json.loads(get(f"{base}/api/v1/query?{urllib.parse.urlencode({'query': query})}"))
    assert answer["status"] == "success", (query, answer)
    return answer["data"]["result"]


def panels():
    dashboard = json.loads((DEPLOY / "grafana/fanfold.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"].replace("$__rate_interval", "10m").replace("$instance", ".*").replace("$team", ".*")
            yield pytest.param(panel["title"], query, id=f"{panel['title']}: {target['refId']}")


@pytest.mark.parametrize("title, query", list(panels()))
def test_a_panel_shows_something(prometheus, title, query):
    assert "$" not in query, query
    found = ask(prometheus, query)
    assert found or title in MAY_BE_EMPTY, f"nothing for {query}"
    assert not any(math.isnan(float(one["value"][1])) for one in found), f"no number for {query}: {found}"


def test_every_rule_is_evaluated_and_no_alert_fires(prometheus):
    def evaluated():
        groups = json.loads(get(f"{prometheus}/api/v1/rules"))["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        return rules if all(rule["health"] != "unknown" for rule in rules) else None

    rules = until(evaluated, 60)
    wanted = [rule for path in (DEPLOY / "prometheus").glob("*.yaml")
              for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]
    assert len(rules) == len(wanted) > 10
    assert [rule for rule in rules if rule["health"] != "ok"] == []
    firing = [rule["name"] for rule in rules if rule["type"] == "alerting" and rule["state"] == "firing"]
    assert firing == []
