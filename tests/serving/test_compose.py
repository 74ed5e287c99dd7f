"""docker-compose.yaml starts the same programs as `catbreeds up`. The tests compare settings, without Docker."""

import re
from pathlib import Path

import yaml

from serving.addresses import GRPC_PORT, REST_PORT
from serving.gateway.settings import Settings as GatewaySettings
from serving.local import stack
from serving.model_server import flags
from serving.page.settings import Settings as PageSettings

FILE = Path(__file__).parents[2] / "serving" / "docker-compose.yaml"
VALUES = {"CATBREEDS_WORKDIR": "/runs/demo"}


def interpolate(text: str) -> str:
    """Substitute variables like Compose."""
    return re.sub(r"\$\{(\w+)(?::[-?]([^}]*))?\}", lambda match: VALUES.get(match[1], match[2]), text)


SERVICES = yaml.safe_load(interpolate(FILE.read_text()))["services"]


def test_the_model_server_has_the_flags_that_up_gives_it(tmp_path):
    program = stack.model_server(tmp_path / "models.config", "catbreeds", GRPC_PORT, REST_PORT)
    expected = [part for part in program.command if part.startswith("--")]
    paths = {str(tmp_path / "models.config"): "/runs/demo/serve/models.config"}
    paths[str(tmp_path / "monitoring.config")] = SERVICES["model-server"]["configs"][0]["target"]
    for local_path, container_path in paths.items():
        expected = [flag.replace(local_path, container_path) for flag in expected]
    command = SERVICES["model-server"]["command"]
    assert sorted(command) == sorted(expected)
    assert flags.parse(command).port == 8500
    assert SERVICES["model-server"]["environment"] == program.environment
    volume = SERVICES["model-server"]["volumes"][0]
    assert volume["source"] == volume["target"] == "/runs/demo"


def test_each_service_connects_to_the_address_of_its_backend():
    gateway = GatewaySettings.from_environment(SERVICES["gateway"]["environment"])
    assert (gateway.model_server, gateway.model_label) == ("model-server:8500", "stable")
    assert str(gateway.traffic_file) == "/runs/demo/serve/traffic.json"
    assert SERVICES["gateway"]["volumes"][0]["target"] == "/runs/demo"
    page = PageSettings.from_environment(SERVICES["page"]["environment"])
    assert page.gateway == f"http://gateway:{gateway.port}"
    ports = {name: service["ports"] for name, service in SERVICES.items()}
    assert ports["gateway"] == [f"127.0.0.1:{gateway.port}:{gateway.port}"]
    assert ports["page"] == [f"127.0.0.1:{page.port}:{page.port}"]
    assert list(SERVICES["page"]["depends_on"]) == ["gateway"]
    assert list(SERVICES["gateway"]["depends_on"]) == ["model-server"]


def test_each_service_has_a_real_health_check_and_minimal_privileges():
    checks = {name: service["healthcheck"]["test"][-1] for name, service in SERVICES.items()}
    assert "/v1/models/catbreeds/labels/stable/metadata" in checks["model-server"]
    assert "/readyz" in checks["gateway"]
    assert "/_stcore/health" in checks["page"]
    for service in SERVICES.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
