"""Each file below deploy/ is sound: fanfold takes the configurations, the tools of the trade take the rest."""

import json
import re
import subprocess

import pytest
import yaml

from conftest import DEPLOY, FANFOLD, ROOT, run, tool

EVERYTHING = ["serviceMonitor", "prometheusRule", "dashboard", "autoscaling", "ingress"]
# Kinds of the Prometheus operator; the published schemas of Kubernetes do not have them.
OPERATOR = {"ServiceMonitor", "PrometheusRule"}


def rendered(tmp_path, *options):
    helm = {"HELM_CACHE_HOME": str(tmp_path), "HELM_CONFIG_HOME": str(tmp_path), "HELM_DATA_HOME": str(tmp_path)}
    text = run(tool("helm"), "template", "x", DEPLOY / "helm", *options, env={"PATH": "/usr/bin:/bin", **helm}).stdout
    return [document for document in yaml.safe_load_all(text) if document]


def test_the_configuration_of_compose_is_taken(check, tmp_path):
    text = (DEPLOY / "compose/fanfold.yaml").read_text().replace("/var/log/fanfold", str(tmp_path))
    (tmp_path / "fanfold.yaml").write_text(text)
    assert "example" in check(tmp_path / "fanfold.yaml", {"OPENAI_API_KEY": "k"}).stdout
    hashed = run(FANFOLD, "keys", "hash", input="compose-example").stdout
    assert re.search("[0-9a-f]{64}", hashed).group() in text, "the key the comment names"


def test_the_configuration_of_systemd_is_taken(check, tmp_path):
    (tmp_path / "openai-key").write_text("k")
    text = (DEPLOY / "systemd/fanfold.yaml").read_text().replace("/var/log/fanfold", str(tmp_path))
    (tmp_path / "fanfold.yaml").write_text(text)
    check(tmp_path / "fanfold.yaml", {"CREDENTIALS_DIRECTORY": str(tmp_path)})


def test_the_configuration_of_the_chart_is_taken(check, tmp_path):
    [config] = [d for d in rendered(tmp_path) if d["kind"] == "ConfigMap"]
    (tmp_path / "fanfold.yaml").write_text(config["data"]["fanfold.yaml"])
    check(tmp_path / "fanfold.yaml", {"OPENAI_API_KEY": "k"})


@pytest.mark.parametrize("all_on", [False, True])
def test_the_chart_renders_what_kubernetes_takes(tmp_path, all_on):
    options = [f"--set={part}.enabled=true" for part in EVERYTHING] if all_on else []
    documents = rendered(tmp_path, *options)
    kinds = {d["kind"] for d in documents}
    assert {"Deployment", "Service", "ConfigMap", "PodDisruptionBudget", "ServiceAccount"} <= kinds
    assert (OPERATOR | {"HorizontalPodAutoscaler", "Ingress"} <= kinds) == all_on
    known = [d for d in documents if d["kind"] not in OPERATOR]
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text(yaml.safe_dump_all(known))
    run(tool("kubernetes-validate"), "--strict", manifest)


def test_a_pod_has_no_more_rights_than_it_needs_and_rolls_with_its_configuration(tmp_path):
    def deployment(*options):
        [found] = [d for d in rendered(tmp_path, *options) if d["kind"] == "Deployment"]
        return found["spec"]["template"]

    pod = deployment()
    [container] = pod["spec"]["containers"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["envFrom"] == [{"secretRef": {"name": "fanfold-keys"}}]
    sums = {p["metadata"]["annotations"]["checksum/config"] for p in (pod, deployment("--set=config.log.level=debug"))}
    assert len(sums) == 2


def test_what_the_operator_gets_is_what_deploy_has(tmp_path):
    documents = rendered(tmp_path, *[f"--set={part}.enabled=true" for part in EVERYTHING])
    by_kind = {d["kind"]: d for d in documents}
    groups = [yaml.safe_load(path.read_text())["groups"] for path in sorted((DEPLOY / "prometheus").glob("*.yaml"))]
    assert by_kind["PrometheusRule"]["spec"]["groups"] == sum(groups, [])
    [dashboard] = [d for d in documents if d["metadata"]["name"].endswith("-dashboard")]
    assert json.loads(dashboard["data"]["fanfold.json"]) == json.loads((DEPLOY / "grafana/fanfold.json").read_text())
    selected = by_kind["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
    admin = [d for d in documents if d["kind"] == "Service" and d["metadata"]["name"].endswith("-admin")]
    assert selected.items() <= admin[0]["metadata"]["labels"].items()


def test_helm_finds_nothing_to_say_about_the_chart():
    run(tool("helm"), "lint", "--strict", DEPLOY / "helm")


def test_the_unit_is_sound_and_shut_off(tmp_path):
    unit = (DEPLOY / "systemd/fanfold.service").read_text()
    assert unit.count("/usr/local/bin/fanfold") >= 2
    path = tmp_path / "fanfold.service"
    path.write_text(unit.replace("/usr/local/bin/fanfold", str(FANFOLD)))
    done = run(tool("systemd-analyze"), "verify", path)
    assert "fanfold.service" not in done.stderr, done.stderr
    # From 0 (shut off) to 100; the README tells it.
    done = run(tool("systemd-analyze"), "security", "--offline=true", "--threshold=20", path)
    score = re.search(r"exposure level for fanfold.service: ([0-9.]+)", done.stdout).group(1)
    assert f"exposure level {score}" in (ROOT / "README.md").read_text()


def test_the_image_and_the_composition_are_sound():
    run(tool("hadolint"), DEPLOY / "Dockerfile")
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).exists(), f"{volume}: there is no {source}"


def test_the_image_gets_what_the_build_needs(tmp_path):
    """The COPY lines of the Dockerfile name everything cargo wants: its own view of the package is enough."""
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]]
    ignored = (ROOT / ".dockerignore").read_text().split()
    for source in copied:
        target = tmp_path / source
        target.parent.mkdir(parents=True, exist_ok=True)
        run("cp", "-r", ROOT / source, target)
        assert any(f"!{'/'.join(source.split('/')[:n])}" in ignored for n in range(1, 4)), f"{source} is ignored"
    metadata = run("cargo", "metadata", "--format-version=1", "--no-deps", "--locked", "--offline", cwd=tmp_path)
    names = {t["name"] for p in json.loads(metadata.stdout)["packages"] for t in p["targets"]}
    assert "fanfold" in names


def test_rules_are_sound():
    run(tool("promtool"), "check", "rules", *sorted((DEPLOY / "prometheus").glob("*.yaml")))
    assert subprocess.run([tool("promtool"), "check", "config", "--syntax-only", DEPLOY / "compose/prometheus.yaml"]).returncode == 0
