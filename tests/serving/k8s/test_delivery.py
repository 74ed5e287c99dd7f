"""skaffold.yaml, the Dockerfiles and the GitLab pipeline are consistent with the manifests and with each other."""

import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import dockerfile
import jsonschema
import pytest
import yaml

from tests.serving.k8s.variants import K8S, ROOT, Object, Variant

# The part of the v4beta13 schema that skaffold.yaml uses, because no package contains the whole schema.
_TEXT = {"type": "string", "minLength": 1}


def _object(required: tuple[str, ...] = (), **properties: Object) -> Object:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _list(items: Object) -> Object:
    return {"type": "array", "items": items, "minItems": 1}


_BUILD = _object(
    artifacts=_list(
        _object(
            ("image", "context", "docker"),
            image=_TEXT,
            context=_TEXT,
            docker=_object(dockerfile=_TEXT, buildArgs={"type": "object", "additionalProperties": _TEXT}),
        )
    ),
    tagPolicy=_object(inputDigest=_object()),
    local=_object(("push",), push={"type": "boolean"}, useBuildkit={"type": "boolean"}),
    platforms=_list({"enum": ["linux/amd64"]}),
)
_SKAFFOLD = _object(
    ("apiVersion", "kind", "build", "profiles"),
    apiVersion={"const": "skaffold/v4beta13"},
    kind={"const": "Config"},
    metadata=_object(name=_TEXT),
    build=_BUILD,
    deploy=_object(
        statusCheckDeadlineSeconds={"type": "integer", "minimum": 1},
        tolerateFailuresUntilDeadline={"type": "boolean"},
    ),
    portForward=_list(
        _object(
            ("resourceType", "resourceName", "port"),
            resourceType={"enum": ["service", "deployment", "pod"]},
            resourceName=_TEXT,
            namespace=_TEXT,
            port={"type": ["integer", "string"]},
            localPort={"type": "integer", "minimum": 1024},
        )
    ),
    profiles=_list(
        _object(
            ("name", "manifests"),
            name=_TEXT,
            activation=_list(_object(kubeContext=_TEXT, command=_TEXT, env=_TEXT)),
            build=_BUILD,
            manifests=_object(("kustomize",), kustomize=_object(("paths",), paths=_list(_TEXT))),
        )
    ),
)


@pytest.fixture(scope="module")
def skaffold() -> Object:
    return yaml.safe_load((ROOT / "skaffold.yaml").read_text())


@pytest.fixture(scope="module")
def profiles(skaffold) -> dict[str, Object]:
    return {profile["name"]: profile for profile in skaffold["profiles"]}


def test_skaffold_yaml_matches_the_schema(skaffold):
    jsonschema.validate(skaffold, _SKAFFOLD)
    for wrong in ({"builds": {}}, {"apiVersion": "skaffold/v9"}, {"profiles": [{"name": "local"}]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(skaffold | wrong, _SKAFFOLD)


def test_each_profile_deploys_the_overlay_of_the_same_name(profiles):
    assert profiles.keys() == {"local", "gke"}
    for name, profile in profiles.items():
        (path,) = profile["manifests"]["kustomize"]["paths"]
        assert (ROOT / path).resolve() == (K8S / "overlays" / name).resolve()
    assert profiles["local"]["build"]["local"]["push"] is False
    assert profiles["gke"]["build"]["local"]["push"] is True
    assert "activation" not in profiles["gke"], "a billed cluster must be selected explicitly"


def test_only_the_contexts_of_kind_and_minikube_activate_the_local_profile(profiles):
    patterns = [activation["kubeContext"] for activation in profiles["local"]["activation"]]
    for context, active in {"kind-catbreeds": True, "minikube": True, "gke_project_zone_cluster": False}.items():
        assert any(re.fullmatch(pattern, context) for pattern in patterns) is active


def test_skaffold_builds_each_deployed_catbreeds_image(skaffold, rendered):
    built = {artifact["image"]: artifact for artifact in skaffold["build"]["artifacts"]}
    images = {container["image"].partition(":")[0] for _, _, container in rendered["gke"][-1].containers()}
    assert {image for image in images if image.startswith("catbreeds-")} == built.keys()
    for artifact in built.values():
        file = ROOT / artifact["context"] / artifact["docker"]["dockerfile"]
        arguments = re.findall(r"^ARG (\w+)", file.read_text(), re.MULTILINE)
        assert artifact["docker"].get("buildArgs", {}).keys() <= set(arguments)


def test_the_pipeline_image_contains_the_deployed_model_server(rendered):
    """ServingCheck tests models on the server in the pipeline image."""
    _, container = deployed(rendered["local"][0], "model-server")
    assert f"ARG TENSORFLOW_SERVING={container['image']}\n" in (ROOT / "Dockerfile").read_text()


def test_forwarded_ports_are_service_ports(skaffold, rendered):
    variant = rendered["local"][0]
    for forward in skaffold["portForward"]:
        service = variant.find("Service", forward["resourceName"])
        assert forward["port"] in [port["port"] for port in service["spec"]["ports"]]
        assert forward["namespace"] == service["metadata"]["namespace"]


# --- Dockerfiles, compared with the manifests; tests/test_images.py checks each of them alone

_IMAGES = {"gateway": "serving.gateway", "page": "serving.page"}


def instructions(image: str) -> list[dockerfile.Command]:
    return list(dockerfile.parse_file(str(ROOT / "serving" / image / "Dockerfile")))


def deployed(variant: Variant, image: str) -> tuple[Object, Object]:
    return next((spec, container) for name, spec, container in variant.containers() if name == image)


@pytest.mark.parametrize("image", _IMAGES)
def test_an_image_has_the_user_port_and_command_of_its_pod(rendered, image):
    spec, container = deployed(rendered["local"][0], image)
    last = {command.cmd: command.value for command in instructions(image)}
    user = spec["securityContext"]
    assert last["USER"] == (f"{user['runAsUser']}:{user['runAsGroup']}",)
    assert last["EXPOSE"] == (str(container["ports"][0]["containerPort"]),)
    assert last["ENTRYPOINT"] == ("python", "-m", _IMAGES[image])


@pytest.mark.parametrize("image", _IMAGES)
def test_the_files_of_an_image_run_with_its_locked_packages(tmp_path, image):
    """The copied files import no other catbreeds modules and no packages outside the lock file."""
    copies = [command.value for command in instructions(image) if command.cmd == "COPY" and not command.flags]
    for *sources, target in copies:
        for source in sources:
            if source.startswith("serving/"):
                destination = tmp_path / target
                if target.endswith("/"):
                    destination /= Path(source).name
                destination.parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-r", ROOT / source, destination], check=True)
            else:
                assert source == f"requirements/{image}.lock"
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements" / f"{image}.lock").read_text(), re.MULTILINE))
    installed = packages_distributions().items()
    absent = {
        module for module, owners in installed if not {name.lower().replace("_", "-") for name in owners} & locked
    }
    script = (
        "import sys, pkgutil\n"
        f"sys.modules |= dict.fromkeys({sorted(absent - {'serving'})})\n"  # None prevents the import
        f"import {_IMAGES[image]}.__main__, {_IMAGES[image]} as package\n"
        "for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "    __import__(module.name)\n"
        "print(*package.__path__)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == str(tmp_path / "serving" / image)


# --- GitLab


@pytest.fixture(scope="module")
def jobs() -> dict[str, Object]:
    document = yaml.safe_load((ROOT / ".gitlab-ci.yml").read_text())
    assert document["stages"] == ["lint", "test", "build", "compile", "deploy"]
    return {name: job for name, job in document.items() if isinstance(job, dict) and "stage" in job}


def test_the_gitlab_pipeline_is_valid():
    command = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", "vendor.gitlab-ci"]
    process = subprocess.run(
        [*command, "--data-transform", "gitlab-ci", ROOT / ".gitlab-ci.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout


def test_the_gitlab_pipeline_has_all_stages_and_calls_only_make(jobs):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {job["stage"] for job in jobs.values()} == {"lint", "test", "build", "compile", "deploy"}
    for name, job in jobs.items():
        for line in job["script"]:
            command, target, *_ = line.split()
            assert (command, target in targets) == ("make", True), f"{name}: {line}"


def test_every_image_in_the_gitlab_pipeline_has_a_version_tag(jobs):
    for job in jobs.values():
        for image in [job.get("image"), *job.get("services", [])]:
            assert image is None or re.search(r":v?\d+\.\d+\.\d+", image), image
