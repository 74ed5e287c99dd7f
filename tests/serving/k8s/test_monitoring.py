"""Alerts and dashboard query existing metrics, and alerts fire in the right scenarios only."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import promql_parser
import pytest
import yaml

from tests.serving.k8s.variants import ROOT, Object

PROMTOOL = shutil.which("promtool") or shutil.which("promtool", path=str(Path(sys.executable).parent))
DOCUMENT = (ROOT / "docs" / "kubernetes.md").read_text()


@pytest.fixture(scope="module")
def rules(variant) -> list[Object]:
    (group,) = variant.find("PrometheusRule", "catbreeds")["spec"]["groups"]
    return group["rules"]


@pytest.fixture(scope="module")
def dashboard(variant) -> Object:
    return json.loads(variant.find("ConfigMap", "dashboard")["data"]["catbreeds.json"])


def selectors(query: str) -> list[promql_parser.VectorSelector]:
    """Return the selectors of a query.

    Raises:
        ValueError: If the query is invalid.
    """
    found = []

    def visit(expression) -> bool:
        if isinstance(expression, promql_parser.VectorSelector):
            found.append(expression)
        return True

    promql_parser.walk(promql_parser.parse(query.replace("$__rate_interval", "5m")), visit)
    return found


def series(text: str) -> dict[str, set[str]]:
    """Return the label names of each metric in the Prometheus text format."""
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^([a-zA-Z_:][\w:]*)(\{.*\})? ", text, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'([a-zA-Z_]\w*)="', labels))
    return found


@pytest.fixture(scope="module")
def known(scraped) -> dict[str, dict[str, set[str]]]:
    """Label names of each metric, by job."""
    return {job: {"up": set(), **series(text)} for job, text in scraped.items()}


def unknown(query: str, known: dict[str, dict[str, set[str]]]) -> list[str]:
    """Return the metrics and labels of a query that no process exports."""
    found = []
    for selector in selectors(query):
        matchers = {matcher.name: matcher.value for matcher in selector.matchers.matchers}
        metrics = known.get(matchers.pop("job", ""), {})
        if selector.name not in metrics:
            found.append(f"{selector.name} of {query}")
        else:
            found += [f"label {label} of {query}" for label in matchers.keys() - metrics[selector.name]]
    return found


def test_alerts_query_existing_metrics(rules, known):
    for rule in rules:
        assert selectors(rule["expr"]), rule["alert"]
        assert not unknown(rule["expr"], known), rule["alert"]


def test_the_dashboard_queries_existing_metrics(dashboard, known):
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            assert selectors(target["expr"]), panel["title"]
            assert not unknown(target["expr"], known), panel["title"]


@pytest.mark.parametrize(
    "query",
    [
        'sum(serving_request_count{job="catbreeds/model-server"})',
        'sum(:tensorflow:serving:request_count{job="catbreeds/gateway"})',
        ':tensorflow:serving:request_count{job="catbreeds/model-server", code="OK"}',
        "up",
    ],
)
def test_unknown_metrics_and_labels_are_detected(known, query):
    assert unknown(query, known)


def test_grafana_can_display_the_dashboard(dashboard):
    assert dashboard["uid"]
    assert dashboard["title"]
    assert isinstance(dashboard["schemaVersion"], int)
    (source,) = dashboard["templating"]["list"]
    assert (source["type"], source["query"]) == ("datasource", "prometheus")
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        position = panel["gridPos"]
        columns, lines = (
            range(position["x"], position["x"] + position["w"]),
            range(position["y"], position["y"] + position["h"]),
        )
        assert columns.stop <= 24
        cells = {(column, line) for column in columns for line in lines}
        assert not cells & taken, f"{panel['title']} overlaps another panel"
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            references = [target["refId"] for target in panel["targets"]]
            assert len(references) == len(set(references)) > 0
            for item in (panel, *panel["targets"]):
                assert item["datasource"] == {"type": "prometheus", "uid": f"${{{source['name']}}}"}


def test_every_alert_is_documented(rules):
    for rule in rules:
        assert f"**{rule['alert']}**" in DOCUMENT
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]
    documented = set(re.findall(r"\*\*(Catbreeds\w+)\*\*", DOCUMENT))
    assert documented == {rule["alert"] for rule in rules}


# Samples of one hour without errors; each scenario changes some series.
_MODEL_SERVER = 'job="catbreeds/model-server", pod="model-server-0"'
_GATEWAY = 'job="catbreeds/gateway", pod="gateway-0"'
_PREDICT = f'{_GATEWAY}, route="/v1/breeds:predict"'
_REQUESTS, _SECONDS = "catbreeds_gateway_requests_total", "catbreeds_gateway_request_seconds_bucket"
_LOADS, _MODEL_REQUESTS = ":tensorflow:cc:saved_model:load_attempt_count", ":tensorflow:serving:request_count"
_RATIO = "catbreeds_gateway_drift_ratio"
_DRIFT = 'job="catbreeds/gateway", version="3", feature="brightness"'
_HEALTHY = {
    f"up{{{_GATEWAY}}}": "1x60",
    f"up{{{_MODEL_SERVER}}}": "1x60",
    f'{_REQUESTS}{{{_PREDICT}, code="200"}}': "0+600x60",
    f'{_REQUESTS}{{{_PREDICT}, code="415"}}': "0+300x60",
    f'{_REQUESTS}{{{_PREDICT}, code="500"}}': "0+1x60",
    f'{_SECONDS}{{{_PREDICT}, le="0.5"}}': "0+890x60",
    f'{_SECONDS}{{{_PREDICT}, le="2.5"}}': "0+900x60",
    f'{_SECONDS}{{{_PREDICT}, le="+Inf"}}': "0+901x60",
    f'{_MODEL_REQUESTS}{{{_MODEL_SERVER}, status="OK"}}': "0+600x60",
    f'{_LOADS}{{{_MODEL_SERVER}, model_path="/models/catbreeds/1", status="success"}}': "1x60",
    f'{_RATIO}{{{_DRIFT}, pod="gateway-0"}}': "0.9x60",
}
_SCENARIOS = {
    "healthy": ({}, "30m", set()),
    "no traffic": ({name: "7x60" for name in _HEALTHY if not name.startswith(("up", _RATIO))}, "30m", set()),
    # A failed readiness probe is not a failed prediction request.
    "probes fail": ({f'{_REQUESTS}{{{_GATEWAY}, route="/readyz", code="503"}}': "0+200x60"}, "15m", set()),
    "no gateway": ({f"up{{{_GATEWAY}}}": "1x10 _x50"}, "20m", {"CatbreedsGatewayDown"}),
    "a gateway restarts": ({f"up{{{_GATEWAY}}}": "1x10 0 1x50"}, "11m", set()),
    "requests fail": ({f'{_REQUESTS}{{{_PREDICT}, code="503"}}': "0+20x60"}, "15m", {"CatbreedsGatewayErrors"}),
    "some requests failed": ({f'{_REQUESTS}{{{_PREDICT}, code="503"}}': "0+20x3 60x57"}, "15m", set()),
    "slow": ({f'{_SECONDS}{{{_PREDICT}, le="0.5"}}': "0+500x60"}, "20m", {"CatbreedsGatewaySlow"}),
    "no model server": ({f"up{{{_MODEL_SERVER}}}": "1x10 _x50"}, "20m", {"CatbreedsModelServerDown"}),
    "a pod loads slowly": (
        {'up{job="catbreeds/model-server", pod="model-server-1"}': "0x10 1x50"},
        "10m",
        set(),
    ),
    "a pod never becomes ready": (
        {'up{job="catbreeds/model-server", pod="model-server-1"}': "0x60"},
        "20m",
        {"CatbreedsModelServerStuck"},
    ),
    "requests to the model fail": (
        {f'{_MODEL_REQUESTS}{{{_MODEL_SERVER}, status="NOT_FOUND"}}': "0+20x60"},
        "15m",
        {"CatbreedsModelServerErrors"},
    ),
    "a canary stopped, and gateways still request it": (
        {f'{_MODEL_REQUESTS}{{{_MODEL_SERVER}, status="INVALID_ARGUMENT"}}': "0+60x60"},
        "15m",
        set(),
    ),
    "a version fails to load": (
        {f'{_LOADS}{{{_MODEL_SERVER}, model_path="/models/catbreeds/2", status="fail"}}': "_x10 3x50"},
        "12m",
        {"CatbreedsModelNotLoaded"},
    ),
    "a version failed to load long ago": (
        {f'{_LOADS}{{{_MODEL_SERVER}, model_path="/models/catbreeds/2", status="fail"}}': "_x10 3x50"},
        "40m",
        set(),
    ),
    "a broken version fails again": (
        {f'{_LOADS}{{{_MODEL_SERVER}, model_path="/models/catbreeds/2", status="fail"}}': "3x40 4x20"},
        "45m",
        {"CatbreedsModelNotLoaded"},
    ),
    "the photos have drifted": (
        {f'{_RATIO}{{{_DRIFT}, pod="gateway-{pod}"}}': "_x10 1.1x50" for pod in (0, 1)},
        "30m",
        {"CatbreedsTrafficDrift"},
    ),
    "a later comparison finds no drift": (
        {f'{_RATIO}{{{_DRIFT}, pod="gateway-0"}}': "2x30 0.8x30"},
        "40m",
        set(),
    ),
}


def test_every_alert_has_a_scenario(rules):
    assert {rule["alert"] for rule in rules} == set().union(*(fires for _, _, fires in _SCENARIOS.values()))


@pytest.mark.skipif(PROMTOOL is None, reason="promtool not found; install it with `make promtool`")
def test_alerts_fire_in_the_right_scenarios_only(rules, tmp_path):
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "catbreeds", "rules": rules}]}))
    tests = [
        {
            "name": name,
            "interval": "1m",
            "input_series": [{"series": key, "values": values} for key, values in (_HEALTHY | changes).items()],
            "promql_expr_test": [
                {
                    "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                    "eval_time": time,
                    "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(fires)],
                }
            ],
        }
        for name, (changes, time, fires) in _SCENARIOS.items()
    ]
    document = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(document))
    for arguments in (["check", "rules", "rules.yaml"], ["test", "rules", "tests.yaml"]):
        process = subprocess.run([PROMTOOL, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stdout + process.stderr
