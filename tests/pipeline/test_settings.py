"""Settings: invalid values are rejected with the key and what is allowed; later sources take precedence."""

import json
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

import serving.gateway.settings as gateway
import serving.page.settings as page
from pipeline.settings import RENAMED_KEYS, Settings, SettingsError, load, profiles, to_json, to_yaml
from tests.model_files import SIDE, write_model
from tests.running import catbreeds


def error_message(*overrides: str, profile: str = "demo", environment: dict[str, str] | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        load(profile, overrides, environment)
    return str(caught.value)


@pytest.mark.parametrize("name", profiles())
def test_every_profile_loads_and_survives_a_round_trip(name, tmp_path):
    settings = load(name)
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(settings))
    assert load(str(copy)) == settings


def test_the_yaml_of_changed_settings_has_every_key_and_round_trips(tmp_path):
    settings = load(
        "demo",
        [
            "tuner.learning_rate=[1e-7, 1e-5]",
            "data=/photos/größe 😺",
            "beam.options=['--a=b: c']",
            "tuner.units=[0, 7]",
            "backbones=[xception, {name: net, model: net.keras, layers: [a, b]}]",
            "image_size={xception: 299, net: 64}",
        ],
    )
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(settings), encoding="utf-8")
    assert load(str(copy)) == settings != load("demo")
    for key in Settings.model_fields:
        assert f"{key}:" in copy.read_text(encoding="utf-8")


def test_the_json_of_the_settings_is_one_object_with_every_value():
    settings = load("demo", ["tuner.learning_rate=[1e-7, 1e-5]", "data=/photos/größe 😺"])
    assert Settings.model_validate(json.loads(to_json(settings))) == settings


def test_the_standard_profile_covers_the_task_of_the_original_project():
    settings = load("standard")
    assert settings.backbones == ("xception", "resnet50", "efficientnetb7")
    assert settings.weights == "imagenet"
    assert settings.image_size == {"xception": 256, "resnet50": 224, "efficientnetb7": 224}
    assert {10, 50, 100} <= set(settings.tuner.units)
    assert settings.tuner.dropout == (0.2, 0.5, 0.8)
    assert settings.tuner.learning_rate == (1e-4, 1e-1)
    assert settings.tuner.max_epochs == 10
    assert settings.tuner.factor == 3


def test_the_demo_profile_needs_no_download():
    assert load("demo").weights == "random"


@pytest.mark.parametrize(
    ("override", "start", "available_key"),
    [
        ("epochs=3", "epochs: no such setting", "trainer"),
        ("tuner.max_epochz=3", "tuner.max_epochz: no such setting", "max_epochs"),
        ("gate.min_acuracy=1", "gate.min_acuracy: no such setting", "min_accuracy"),
        ("tunr.max_epochs=3", "tunr: no such setting", "tuner"),
    ],
)
def test_an_unknown_key_is_rejected_with_its_path_and_the_available_keys(override, start, available_key):
    message = error_message(override)
    assert message.startswith(start)
    assert available_key in message.partition("available: ")[2].split(", ")


OLD_KEYS = [
    ("beam.embedding_batch", 8),
    ("card", {"contact": "CC: BY"}),
    ("ingest.max_bad_share", 0.1),
    ("kubeflow.embedding", {"cpu": 1}),
    ("kubeflow.learning", {"cpu": 1}),
    ("kubeflow.other", {"cpu": 1}),
    ("rollout.keep", 3),
    ("rollout.loaded", 3),
    ("rollout.models", "/models"),
    ("rollout.share", 0.2),
    ("rollout.start", "workdir"),
]


def test_every_renamed_key_maps_to_a_setting():
    assert [key for key, _ in OLD_KEYS] == sorted(RENAMED_KEYS)
    for new_key in RENAMED_KEYS.values():
        value = Settings()
        for part in new_key.split("."):
            value = getattr(value, part)


@pytest.mark.parametrize(("old_key", "value"), OLD_KEYS)
@pytest.mark.parametrize("source", ["profile", "environment", "override"])
def test_a_renamed_key_is_rejected_with_its_new_name(source, old_key, value, tmp_path):
    message = f"{old_key}: renamed to {RENAMED_KEYS[old_key]}; use the new key"
    text = json.dumps(value)
    if source == "override":
        assert error_message(f"{old_key}={text}") == message
    elif source == "environment":
        variable = f"CATBREEDS_{old_key.upper().replace('.', '__')}"
        assert error_message(environment={variable: text}) == f"{message} (set by {variable} in the environment)"
    else:
        profile = tmp_path / "old.yaml"
        section, _, key = old_key.partition(".")
        profile.write_text(f"{section}: {{{key}: {text}}}" if key else f"{section}: {text}")
        assert error_message(profile=str(profile)) == message


def test_a_command_with_a_renamed_key_exits_with_code_2():
    done = catbreeds("run", "--profile", "demo", "--set", "rollout.share=0.2", "--print-config")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "catbreeds: rollout.share: renamed to rollout.canary_share; use the new key\n"


def test_a_key_of_a_renamed_section_is_rejected_with_the_new_name_of_the_section():
    assert error_message("card.data_licence=CC: BY") == "card: renamed to model_card; use the new key"
    assert (
        error_message("kubeflow.other.cpu=2")
        == "kubeflow.other: renamed to kubeflow.default_resources; use the new key"
    )


@pytest.mark.parametrize(
    ("override", "start", "allowed"),
    [
        ("image_size=2000", "image_size:", "at least 32 and at most 1024"),
        ("image_size=7", "image_size:", "at least 32 and at most 1024"),
        ("image_size=wide", "image_size:", "at least 32 and at most 1024"),
        ("image_size=80.5", "image_size:", "at least 32 and at most 1024"),
        ("tuner.max_epochs=1", "tuner.max_epochs:", "at least 2 and at most 1000"),
        ("split.train=1", "split.train:", "above 0 and below 1"),
        ("gate.margin=-0.1", "gate.margin:", "at least 0 and at most 1"),
        ("gate.margin=nan", "gate.margin:", "at least 0 and at most 1"),
        ("ingest.max_unusable_share=1.5", "ingest.max_unusable_share:", "at least 0 and at most 1"),
        ("trainer.batch_size=0", "trainer.batch_size:", "at least 1"),
        ("seed=-1", "seed:", "at least 0"),
        ("tuner.units=[-1, 10]", "tuner.units.0:", "greater than or equal to 0"),
        ("tuner.dropout=[0.5, 1]", "tuner.dropout.1:", "less than 1"),
        ("tuner.units=[]", "tuner.units:", "at least 1 item"),
        ("tuner.learning_rate=[0.1, 0.001]", "tuner.learning_rate:", "the lowest must be below the highest"),
        ("tuner.learning_rate=[0, 1]", "tuner.learning_rate.0:", "greater than 0"),
        ("tuner.objective=val_f1", "tuner.objective:", "'val_loss' or 'val_accuracy'"),
        ("gate.policy=best", "gate.policy:", "'no_harm', 'not_worse', 'better' or 'significantly_better'"),
        ("beam.runner=spark", "beam.runner:", "'direct', 'portable', 'flink' or 'dataflow'"),
        ("backbones=[vgg16]", "backbones.0:", "'xception', 'resnet50'"),
        ("backbones=[resnet50, resnet50]", "backbones:", "listed twice"),
        (
            f"backbones=[{', '.join(f'{{name: net{number}, model: a.keras}}' for number in range(9))}]",
            "backbones:",
            "at most 8 candidates",
        ),
        ("backbones=[]", "backbones:", "at least 1 item"),
        ("backbones=[{name: net}]", "backbones.0.model:", "required"),
        ("backbones=[{name: Net, model: a.keras}]", "backbones.0.name:", "^[a-z][a-z0-9_]*$"),
        ("backbones=[{name: my-net, model: a.keras}]", "backbones.0.name:", "^[a-z][a-z0-9_]*$"),
        ("backbones=[{name: resnet50, model: a.keras}]", "backbones.0.name:", "the name of a built-in backbone"),
        ("backbones=[{name: ensemble, model: a.keras}]", "backbones.0.name:", "is reserved"),
        ("backbones=[{name: gate, model: a.keras}]", "backbones.0.name:", "is reserved"),
        ("backbones=[{name: net, model: a.h5}]", "backbones.0.model:", "keras$"),
        ("backbones=[{name: net, model: 's3://b/a.keras'}]", "backbones.0.model:", "must be a local path"),
        ("backbones=[{name: net, model: a.keras, side: 9}]", "backbones.0.side: no such setting", "image_size"),
        ("backbones=[{name: net, model: a.keras, image_size: 9}]", "backbones.0.image_size:", "or equal to 32"),
        ("backbones=[{name: net, model: a.keras, layers: top}]", "backbones.0.layers:", "valid tuple"),
        ("backbones=[{name: net, model: a.keras}, {name: net, model: b.keras}]", "backbones:", "listed twice: net"),
        ("image_size={xception: 2000}", "image_size.xception:", "or equal to 1024"),
        ("image_size={xception: 299}", "image_size:", "no size for resnet50"),
        ("image_size={xception: 299, resnet50: 99, efficientnetb7: 99, vgg: 9}", "image_size.vgg:", "or equal to 32"),
        (
            "image_size={xception: 299, resnet50: 99, efficientnetb7: 99, vgg: 99}",
            "image_size:",
            "no such backbone: vgg",
        ),
        ("image_size={xception: 70, resnet50: 99, efficientnetb7: 99}", "image_size:", "xception needs at least 71"),
        ("kubeflow.volumes=[{claim: a, path: /a, x: 1}]", "kubeflow.volumes.0.x: no such setting", "claim"),
        ("model_name=My Cats", "model_name:", "^[a-z][a-z0-9-]*$"),
        ("split.train=0.9", "split:", "train + eval + test must be 1, not 1.2"),
    ],
)
def test_an_invalid_value_is_rejected_with_its_key_and_the_allowed_values(override, start, allowed):
    message = error_message(override)
    assert message.startswith(start)
    assert allowed in message
    assert "\n" not in message


def test_all_errors_are_reported_at_once():
    lines = error_message("seed=-1", "tuner.factor=1", "nonsense=1").splitlines()
    assert sorted(line.partition(":")[0] for line in lines) == ["nonsense", "seed", "tuner.factor"]


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("tuner.max_epochs", "--set tuner.max_epochs: write --set key=value"),
        ("seed=[", "'[' is not a YAML value"),
        ("seed=2024-13-45", "'2024-13-45' is not a YAML value"),
        ("gate={margin: 0.02, margin: 1.0}", "line 1: duplicate key 'margin'; remove one"),
        ("kubeflow.secrets=[{name: a, key: b, name: c, variable: D}]", "duplicate key 'name'"),
        ("seed.train=1", "seed: Input should be a valid integer"),
        ("weights.kind=1", "'weights' is a value and has no keys"),
        ("workdir=' '", "workdir: must be the path of a folder"),
    ],
)
def test_an_unreadable_override_is_rejected(override, part):
    assert part in error_message(override)


@pytest.mark.parametrize("text", ["2024", "1e3", "2024-13-45", "yes", "0x10", "CC: BY", "[photos", "{}", "- a"])
def test_text_settings_need_no_quotes(text):
    environment = {"CATBREEDS_WORKDIR": text}
    settings = load(
        "demo", [f"data={text}", f"model_card.data_licence={text}", f"model_card.contact='{text}'"], environment
    )
    assert {settings.workdir, settings.data, settings.model_card.data_licence, settings.model_card.contact} == {text}


def test_a_choice_that_yaml_reads_as_a_boolean_needs_no_quotes():
    assert load("demo", ["rollout.target=workdir", "rollout.target=off"]).rollout.target == "off"


@pytest.mark.parametrize("order", [1, -1])
def test_a_section_and_one_of_its_keys_cannot_both_be_set(order):
    overrides = ["gate={min_accuracy: 0.4}", "gate.margin=0.01"]
    message = "--set gate={min_accuracy: 0.4} and --set gate.margin=0.01 both set keys of 'gate'"
    assert message in error_message(*overrides[::order])
    environment = {"CATBREEDS_GATE": "{}", "CATBREEDS_GATE__MARGIN": "0.01"}
    assert "CATBREEDS_GATE and CATBREEDS_GATE__MARGIN both set keys of 'gate'" in error_message(environment=environment)
    assert load("demo", overrides[1:], {"CATBREEDS_GATE": "{min_accuracy: 0.4}"}).gate.margin == 0.01


def test_later_sources_take_precedence(tmp_path):
    profile = tmp_path / "mine.yaml"
    profile.write_text("weights: random\ntuner: {max_epochs: 5}\ntrainer: {epochs: 5}\ngate: {min_slice: 5}\n")
    environment = {"CATBREEDS_TRAINER__EPOCHS": "6", "CATBREEDS_GATE__MIN_SLICE": "6", "HOME": "/root"}
    settings = load(str(profile), ["gate.min_slice=7", "gate.min_slice=8"], environment)
    assert (settings.tuner.max_epochs, settings.trainer.epochs, settings.gate.min_slice) == (5, 6, 8)
    assert settings.trainer.patience == Settings().trainer.patience


def test_an_override_changes_only_its_key():
    changed = load("demo", ["tuner.factor=2"])
    assert changed.tuner.factor == 2
    assert changed.tuner.model_dump(exclude={"factor"}) == load("demo").tuner.model_dump(exclude={"factor"})


@pytest.mark.parametrize("name", ["demo", "smoke"])
@pytest.mark.parametrize("source", ["override", "environment"])
def test_setting_a_section_keeps_the_keys_that_it_does_not_mention(tmp_path, name, source):
    profile = tmp_path / "mine.yaml"
    profile.write_text(to_yaml(load(name)))
    sections = [key for key, value in load(name) if isinstance(value, BaseModel)]
    assert "gate" in sections
    for section in sections:
        key, value = next(iter(load(name).model_dump(mode="json")[section].items()))
        text = yaml.safe_dump({key: value}, default_flow_style=True, width=1000)
        sources = (
            {"overrides": [f"{section}={text}"]}
            if source == "override"
            else {"environment": {f"CATBREEDS_{section.upper()}": text}}
        )
        assert load(str(profile), **sources) == load(name)


def test_sections_are_merged_recursively_and_other_mappings_are_replaced(tmp_path):
    profile = tmp_path / "mine.yaml"
    profile.write_text("kubeflow: {env: {A: a}, embedding_resources: {cpu: 8, memory: 32}}")
    changed = load(str(profile), ["kubeflow={env: {B: b}, embedding_resources: {memory: 16}}"]).kubeflow
    assert changed.env == {"B": "b"}
    assert (changed.embedding_resources.cpu, changed.embedding_resources.memory) == (8, 16)


def test_an_override_changes_only_one_of_two_sections_that_share_an_anchor(tmp_path):
    profile = tmp_path / "mine.yaml"
    profile.write_text("kubeflow: {embedding_resources: &large {cpu: 8, memory: 32}, training_resources: *large}")
    changed = load(str(profile), ["kubeflow.embedding_resources.memory=16"]).kubeflow
    assert (changed.embedding_resources.memory, changed.training_resources.memory) == (16, 32)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("tuner.units=[10, 200]", "units", (10, 200)),
        ("tuner.dropout=[0.1]", "dropout", (0.1,)),
        ("tuner.learning_rate=[1e-4, 1e-1]", "learning_rate", (1e-4, 1e-1)),
        ("tuner.max_epochs=1e1", "max_epochs", 10),
    ],
)
def test_overrides_accept_yaml_lists_and_python_numbers(override, key, value):
    assert getattr(load("demo", [override]).tuner, key) == value


def test_backbones_are_names_and_files():
    file = "{name: my_net, model: net.keras, layers: [body, top], image_size: 64, licence: CC0}"
    settings = load("demo", environment={"CATBREEDS_BACKBONES": f"[resnet50, {file}]"})
    assert settings.backbone_names == ("resnet50", "my_net")
    assert settings.model_files.keys() == {"my_net"}
    entry = settings.model_files["my_net"]
    assert (entry.model, entry.layers, entry.licence) == ("net.keras", ("body", "top"), "CC0")
    assert (settings.image_size_of("resnet50"), settings.image_size_of("my_net")) == (71, 64)


def test_one_number_is_the_image_size_of_every_backbone():
    settings = load("demo", ["image_size=96"])
    assert {settings.image_size_of(backbone) for backbone in settings.backbone_names} == {96}


@pytest.mark.parametrize("source", ["profile", "override", "environment"])
def test_each_backbone_can_have_its_image_size(tmp_path, source):
    text = "{xception: 299, resnet50: 224, efficientnetb7: 160}"
    profile = tmp_path / "mine.yaml"
    profile.write_text(f"image_size: {text}\n" if source == "profile" else "weights: random\n")
    overrides = [f"image_size={text}"] if source == "override" else []
    environment = {"CATBREEDS_IMAGE_SIZE": text} if source == "environment" else {}
    settings = load(str(profile), overrides, environment)
    sizes = [settings.image_size_of(backbone) for backbone in ("xception", "resnet50", "efficientnetb7")]
    assert sizes == [299, 224, 160]
    profile.write_text(to_yaml(settings))
    assert load(str(profile), ["image_size.xception=320"]).image_size_of("xception") == 320
    # A smaller choice of backbones needs no other mapping.
    assert load(str(profile), ["backbones=[resnet50]"]).image_size_of("resnet50") == 224


def test_a_backbone_from_a_file_has_a_size_in_its_entry_or_in_the_mapping():
    entry = "{name: net, model: net.keras}"
    sized = "{name: net, model: net.keras, image_size: 64}"
    assert load("demo", [f"backbones=[{entry}]", "image_size={net: 50}"]).image_size_of("net") == 50
    assert load("demo", [f"backbones=[{sized}]", "image_size={resnet50: 50}"]).image_size_of("net") == 64
    message = error_message(f"backbones=[{sized}]", "image_size={net: 50}")
    assert message == "image_size: net also has a size in its entry of backbones; remove one"


@pytest.mark.parametrize(
    ("side", "sizes", "size"), [(None, "71", 71), (SIDE, "71", SIDE), (SIDE, "{resnet50: 71}", SIDE)]
)
def test_by_default_the_image_size_is_that_of_the_file_or_else_the_number(tmp_path, side, sizes, size):
    path = write_model(tmp_path / "net.keras", side)
    settings = load("demo", [f"backbones=[{{name: net, model: {path}}}]", f"image_size={sizes}"])
    assert settings.image_size_of("net") == size
    settings.check_model_files()


def test_an_unknown_environment_variable_is_rejected_and_those_of_other_programs_are_ignored():
    assert error_message(environment={"CATBREEDS_TUNER__MAX_EPOCHZ": "3"}).startswith(
        "tuner.max_epochz: no such setting"
    )
    environment = {"CATBREEDS_GATEWAY_PORT": "8080", "CATBREEDS_TEST_IMAGE": "x", "OTHER_SEED": "5"}
    assert load("demo", environment=environment) == load("demo")


def service_links(service: str) -> dict[str, str]:
    """Environment variables that Kubernetes sets in pods for a Service with two ports."""
    prefix, address = service.upper().replace("-", "_"), "10.0.0.7"
    links = {
        f"{prefix}_SERVICE_HOST": address,
        f"{prefix}_SERVICE_PORT": "80",
        f"{prefix}_SERVICE_PORT_HTTP_METRICS": "81",
        f"{prefix}_PORT": f"tcp://{address}:80",
    }
    for port, protocol in ((80, "tcp"), (53, "udp")):
        one = f"{prefix}_PORT_{port}_{protocol.upper()}"
        parts = {"": f"{protocol}://{address}:{port}", "_PROTO": protocol, "_PORT": str(port), "_ADDR": address}
        links |= {f"{one}{part}": value for part, value in parts.items()}
    return links


@pytest.mark.parametrize("service", ["catbreeds", "catbreeds-tuner", "catbreeds-8080", "catbreeds-gateway"])
def test_kubernetes_service_links_are_not_read_as_settings(service):
    assert load("demo", environment=service_links(service)) == load("demo")


@pytest.mark.parametrize("kind", [gateway.Settings, page.Settings])
def test_kubernetes_service_links_are_not_read_as_server_settings(kind):
    links = service_links("catbreeds-gateway") | service_links("catbreeds-page")
    assert kind.from_environment(links) == kind()


@pytest.mark.parametrize(
    ("environment", "variable"),
    [
        ({"CATBREEDS_GATE__MARGIN": "2"}, "CATBREEDS_GATE__MARGIN"),
        ({"CATBREEDS_PORT": "8080"}, "CATBREEDS_PORT"),
        ({"CATBREEDS_TUNER__UNITS": "[1, -1]"}, "CATBREEDS_TUNER__UNITS"),
        ({"CATBREEDS_GATE": "{margin: 2}"}, "CATBREEDS_GATE"),
        ({"CATBREEDS_SPLIT__TRAIN": "0.9"}, "CATBREEDS_SPLIT__TRAIN"),
        ({"CATBREEDS_WEIGHTS_DIR": "/w"}, "CATBREEDS_WEIGHTS_DIR"),
    ],
)
def test_an_error_names_the_environment_variable_that_caused_it(environment, variable):
    assert error_message(environment=environment).endswith(f" (set by {variable} in the environment)")
    assert "environment" not in error_message("seed=-1", environment={"CATBREEDS_SEED": "-2"})


def test_two_variables_for_one_setting_are_rejected():
    environment = {"CATBREEDS_SEED": "1", "CATBREEDS_seed": "2"}
    assert error_message(environment=environment) == "CATBREEDS_seed and CATBREEDS_SEED both set seed; remove one"


def test_random_weights_and_a_weights_folder_are_mutually_exclusive():
    assert error_message("weights_dir=/w").startswith("weights_dir: contains ImageNet weights, but weights=random")
    assert load("demo", ["weights_dir=/w", "weights=imagenet"]).weights_dir == "/w"


def test_images_too_small_for_xception_are_rejected_unless_it_is_not_selected():
    assert error_message("image_size=70") == "image_size: xception needs at least 71 pixels"
    assert load("demo", ["image_size=71"]).image_size == 71
    assert load("demo", ["image_size=32", "backbones=[resnet50, efficientnetb7]"]).image_size == 32


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("- a\n- b\n", "must be a mapping of settings, not list"),
        ("a: [", "cannot be read"),
        ("tuner: 5\n", "tuner: "),
        (b"\xff\xfe\x00", "cannot be read"),
        ("[]", "must be a mapping of settings, not list"),
        ("false", "must be a mapping of settings, not bool"),
        ("model_card: {contact: 2024-13-45}", "cannot be read"),
        ("seed: 1\n---\nseed: 2\n", "cannot be read"),
    ],
)
def test_an_unreadable_profile_is_rejected(text, part, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert part in error_message(profile=str(path))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("seed: 1\nweights: random\nseed: 2\n", "lines 1 and 3: duplicate key 'seed'"),
        ("gate:\n  margin: 0.02\n  policy: better\n  'margin': 1.0\n", "lines 2 and 4: duplicate key 'margin'"),
        ("gate: {margin: 0.02}\nseed: 1\ngate: {min_slice: 5}\n", "lines 1 and 3: duplicate key 'gate'"),
        ("gate: {margin: 0.02, margin: 1}\n", "line 1: duplicate key 'margin'"),
        ("kubeflow:\n  volumes:\n  - claim: a\n    path: /a\n    claim: b\n", "lines 3 and 5: duplicate key 'claim'"),
        ("gate: &rules {margin: 0.02, margin: 0.5}\n", "line 1: duplicate key 'margin'"),
    ],
)
def test_a_profile_with_a_duplicate_key_is_rejected_with_both_lines(text, part, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert error_message(profile=str(path)) == f"profile {path}, {part}; remove one"


def test_merged_keys_may_be_overridden(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("trainer: &few {epochs: 5, patience: 2}\ntuner: {factor: 2}\n")
    assert load(str(path)).trainer.patience == 2
    path.write_text(
        "kubeflow:\n  training_resources: &small {cpu: 1, memory: 2}\n  default_resources: {<<: *small, memory: 3}\n"
    )
    assert load(str(path)).kubeflow.default_resources.memory == 3


def test_a_profile_with_only_comments_has_the_defaults(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("# seed: 1\n")
    assert load(str(path)) == Settings()


def test_an_unknown_profile_is_rejected_with_the_available_ones():
    message = error_message(profile="big")
    assert "'big'" in message
    assert ", ".join(profiles()) in message


def test_settings_are_immutable():
    with pytest.raises(ValueError, match="frozen"):
        load("demo").seed = -1


def test_beam_runs_in_process_unless_another_runner_is_set():
    assert "--runner=FnApiRunner" in load("demo").beam.pipeline_args()
    beam = load("demo", ["beam.runner=flink", "beam.options=['--flink_master=host:8081']"]).beam
    assert beam.pipeline_args() == ["--runner=FlinkRunner", "--flink_master=host:8081"]


@pytest.mark.parametrize("name", ["photos", "größe", "yes and no", "a: b"])
def test_a_folder_may_have_any_name(name):
    assert load("demo", options={"data": name}).data == name


@pytest.mark.parametrize("name", ["2024", "1e5", "inf", "cats 😺"])
def test_a_folder_name_may_look_like_a_number_or_contain_an_emoji(name):
    assert load("demo", options={"data": name}).data == name


def test_relative_profile_paths_start_at_the_current_folder(tmp_path, monkeypatch):
    Path(tmp_path / "mine.yaml").write_text("weights: random\nseed: 9\n")
    monkeypatch.chdir(tmp_path)
    assert load("mine.yaml").seed == 9
