"""Settings: what is impossible is refused with its key and what is allowed, and the later source wins."""

from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

import serving.gateway.settings as gateway
import serving.page.settings as page
from pipeline.settings import Settings, SettingsError, load, profiles, to_yaml


def refusal(*overrides: str, profile: str = "demo", environment: dict[str, str] | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        load(profile, overrides, environment)
    return str(caught.value)


@pytest.mark.parametrize("name", profiles())
def test_every_profile_loads_and_survives_a_round_trip(name, tmp_path):
    settings = load(name)
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(settings))
    assert load(str(copy)) == settings


def test_the_yaml_of_changed_settings_holds_every_key_and_reads_back(tmp_path):
    settings = load(
        "demo",
        [
            "tuner.learning_rate=[1e-7, 1e-5]",
            "data=/photos/größe 😺",
            "beam.options=['--a=b: c']",
            "tuner.units=[0, 7]",
        ],
    )
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(settings), encoding="utf-8")
    assert load(str(copy)) == settings != load("demo")
    for key in Settings.model_fields:
        assert f"{key}:" in copy.read_text(encoding="utf-8")


def test_standard_is_the_job_of_the_seed_project():
    settings = load("standard")
    assert settings.backbones == ("xception", "resnet50", "efficientnetb7")
    assert settings.weights == "imagenet"
    assert settings.image_size == 224
    assert {10, 50, 100} <= set(settings.tuner.units)
    assert settings.tuner.dropout == (0.2, 0.5, 0.8)
    assert settings.tuner.learning_rate == (1e-4, 1e-1)
    assert settings.tuner.max_epochs == 10
    assert settings.tuner.factor == 3


def test_demo_needs_no_download():
    assert load("demo").weights == "random"


@pytest.mark.parametrize(
    ("override", "names", "offered"),
    [
        ("epochs=3", "epochs: no such setting", "trainer"),
        ("tuner.max_epochz=3", "tuner.max_epochz: no such setting", "max_epochs"),
        ("gate.min_acuracy=1", "gate.min_acuracy: no such setting", "min_accuracy"),
        ("tunr.max_epochs=3", "tunr: no such setting", "tuner"),
    ],
)
def test_an_unknown_key_is_named_with_its_path_and_the_ones_there_are(override, names, offered):
    message = refusal(override)
    assert message.startswith(names)
    assert offered in message.partition("there are ")[2].split(", ")


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
        ("ingest.max_bad_share=1.5", "ingest.max_bad_share:", "at least 0 and at most 1"),
        ("trainer.batch_size=0", "trainer.batch_size:", "at least 1"),
        ("seed=-1", "seed:", "at least 0"),
        ("tuner.units=[-1, 10]", "tuner.units.0:", "greater than or equal to 0"),
        ("tuner.dropout=[0.5, 1]", "tuner.dropout.1:", "less than 1"),
        ("tuner.units=[]", "tuner.units:", "at least 1 item"),
        ("tuner.learning_rate=[0.1, 0.001]", "tuner.learning_rate:", "the lowest must be below the highest"),
        ("tuner.learning_rate=[0, 1]", "tuner.learning_rate.0:", "greater than 0"),
        ("tuner.objective=val_f1", "tuner.objective:", "'val_loss' or 'val_accuracy'"),
        ("gate.policy=best", "gate.policy:", "'not_worse', 'better' or 'significantly_better'"),
        ("beam.runner=spark", "beam.runner:", "'direct', 'portable', 'flink' or 'dataflow'"),
        ("backbones=[vgg16]", "backbones.0:", "'xception', 'resnet50'"),
        ("backbones=[resnet50, resnet50]", "backbones:", "named twice"),
        ("backbones=[]", "backbones:", "at least 1 item"),
        ("model_name=My Cats", "model_name:", "^[a-z][a-z0-9-]*$"),
        ("split.train=0.9", "split:", "train + eval + test must be 1, not 1.2"),
    ],
)
def test_an_impossible_value_is_refused_with_its_key_and_what_is_allowed(override, start, allowed):
    message = refusal(override)
    assert message.startswith(start)
    assert allowed in message
    assert "\n" not in message


def test_all_that_is_wrong_is_said_at_once():
    lines = refusal("seed=-1", "tuner.factor=1", "nonsense=1").splitlines()
    assert sorted(line.partition(":")[0] for line in lines) == ["nonsense", "seed", "tuner.factor"]


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("tuner.max_epochs", "--set tuner.max_epochs: write --set key=value"),
        ("seed=[", "'[' is not a YAML value"),
        ("seed=2024-13-45", "'2024-13-45' is not a YAML value"),
        ("gate={margin: 0.02, margin: 1.0}", "line 1: key 'margin' is there twice; remove one"),
        ("kubeflow.secrets=[{name: a, key: b, name: c, variable: D}]", "key 'name' is there twice"),
        ("seed.train=1", "seed: Input should be a valid integer"),
        ("weights.kind=1", "'weights' is a value, it has no keys below it"),
        ("workdir=' '", "workdir: must be the path of a folder"),
    ],
)
def test_an_override_that_cannot_be_read_is_refused(override, part):
    assert part in refusal(override)


@pytest.mark.parametrize("text", ["2024", "1e3", "2024-13-45", "yes", "0x10", "CC: BY", "[photos", "{}", "- a"])
def test_where_only_text_can_stand_it_need_not_be_quoted(text):
    environment = {"CATBREEDS_WORKDIR": text}
    settings = load("demo", [f"data={text}", f"card.data_licence={text}", f"card.contact='{text}'"], environment)
    assert {settings.workdir, settings.data, settings.card.data_licence, settings.card.contact} == {text}


@pytest.mark.parametrize("order", [1, -1])
def test_a_section_and_a_key_of_it_contradict_each_other(order):
    overrides = ["gate={min_accuracy: 0.4}", "gate.margin=0.01"]
    said = "--set gate={min_accuracy: 0.4} and --set gate.margin=0.01 both set keys of 'gate'"
    assert said in refusal(*overrides[::order])
    environment = {"CATBREEDS_GATE": "{}", "CATBREEDS_GATE__MARGIN": "0.01"}
    assert "CATBREEDS_GATE and CATBREEDS_GATE__MARGIN both set keys of 'gate'" in refusal(environment=environment)
    assert load("demo", overrides[1:], {"CATBREEDS_GATE": "{min_accuracy: 0.4}"}).gate.margin == 0.01


def test_the_later_source_wins(tmp_path):
    profile = tmp_path / "mine.yaml"
    profile.write_text("weights: random\ntuner: {max_epochs: 5}\ntrainer: {epochs: 5}\ngate: {min_slice: 5}\n")
    environment = {"CATBREEDS_TRAINER__EPOCHS": "6", "CATBREEDS_GATE__MIN_SLICE": "6", "HOME": "/root"}
    settings = load(str(profile), ["gate.min_slice=7", "gate.min_slice=8"], environment)
    assert (settings.tuner.max_epochs, settings.trainer.epochs, settings.gate.min_slice) == (5, 6, 8)
    assert settings.trainer.patience == Settings().trainer.patience


def test_an_override_leaves_the_rest_of_its_section_alone():
    changed = load("demo", ["tuner.factor=2"])
    assert changed.tuner.factor == 2
    assert changed.tuner.model_dump(exclude={"factor"}) == load("demo").tuner.model_dump(exclude={"factor"})


@pytest.mark.parametrize("name", ["demo", "smoke"])
@pytest.mark.parametrize("by", ["override", "environment"])
def test_a_section_that_is_given_whole_keeps_the_keys_that_it_does_not_name(tmp_path, name, by):
    profile = tmp_path / "mine.yaml"
    profile.write_text(to_yaml(load(name)))
    sections = [key for key, value in load(name) if isinstance(value, BaseModel)]
    assert "gate" in sections
    for section in sections:
        key, value = next(iter(load(name).model_dump(mode="json")[section].items()))
        text = yaml.safe_dump({key: value}, default_flow_style=True, width=1000)
        given = (
            {"overrides": [f"{section}={text}"]}
            if by == "override"
            else {"environment": {f"CATBREEDS_{section.upper()}": text}}
        )
        assert load(str(profile), **given) == load(name)


def test_only_sections_are_merged_and_those_inside_others_too(tmp_path):
    profile = tmp_path / "mine.yaml"
    profile.write_text("kubeflow: {env: {A: a}, embedding: {cpu: 8, memory: 32}}")
    changed = load(str(profile), ["kubeflow={env: {B: b}, embedding: {memory: 16}}"]).kubeflow
    assert changed.env == {"B": "b"}
    assert (changed.embedding.cpu, changed.embedding.memory) == (8, 16)


def test_what_two_sections_share_by_an_anchor_changes_in_one_of_them(tmp_path):
    profile = tmp_path / "mine.yaml"
    profile.write_text("kubeflow: {embedding: &large {cpu: 8, memory: 32}, learning: *large}")
    changed = load(str(profile), ["kubeflow.embedding.memory=16"]).kubeflow
    assert (changed.embedding.memory, changed.learning.memory) == (16, 32)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("tuner.units=[10, 200]", "units", (10, 200)),
        ("tuner.dropout=[0.1]", "dropout", (0.1,)),
        ("tuner.learning_rate=[1e-4, 1e-1]", "learning_rate", (1e-4, 1e-1)),
        ("tuner.max_epochs=1e1", "max_epochs", 10),
    ],
)
def test_lists_and_numbers_are_written_as_in_yaml_or_python(override, key, value):
    assert getattr(load("demo", [override]).tuner, key) == value


def test_backbones_are_a_list_too():
    assert load("demo", ["backbones=[resnet50]"]).backbones == ("resnet50",)


def test_a_wrong_environment_variable_is_refused_and_those_of_other_programs_are_not_read():
    assert refusal(environment={"CATBREEDS_TUNER__MAX_EPOCHZ": "3"}).startswith("tuner.max_epochz: no such setting")
    environment = {"CATBREEDS_GATEWAY_PORT": "8080", "CATBREEDS_TEST_IMAGE": "x", "OTHER_SEED": "5"}
    assert load("demo", environment=environment) == load("demo")


def service_links(service: str) -> dict[str, str]:
    """What Kubernetes puts into the environment of pods for a Service with two ports."""
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
def test_what_kubernetes_tells_about_services_is_no_setting(service):
    assert load("demo", environment=service_links(service)) == load("demo")


@pytest.mark.parametrize("kind", [gateway.Settings, page.Settings])
def test_what_kubernetes_tells_about_services_is_no_setting_of_a_server(kind):
    links = service_links("catbreeds-gateway") | service_links("catbreeds-page")
    assert kind.from_environment(links) == kind()


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"CATBREEDS_GATE__MARGIN": "2"}, "CATBREEDS_GATE__MARGIN"),
        ({"CATBREEDS_PORT": "8080"}, "CATBREEDS_PORT"),
        ({"CATBREEDS_TUNER__UNITS": "[1, -1]"}, "CATBREEDS_TUNER__UNITS"),
        ({"CATBREEDS_GATE": "{margin: 2}"}, "CATBREEDS_GATE"),
        ({"CATBREEDS_SPLIT__TRAIN": "0.9"}, "CATBREEDS_SPLIT__TRAIN"),
        ({"CATBREEDS_WEIGHTS_DIR": "/w"}, "CATBREEDS_WEIGHTS_DIR"),
    ],
)
def test_an_error_names_the_variable_that_it_comes_from(environment, named):
    assert refusal(environment=environment).endswith(f" (set by {named} in the environment)")
    assert "environment" not in refusal("seed=-1", environment={"CATBREEDS_SEED": "-2"})


def test_two_variables_for_one_setting_are_refused():
    environment = {"CATBREEDS_SEED": "1", "CATBREEDS_seed": "2"}
    assert refusal(environment=environment) == "CATBREEDS_seed and CATBREEDS_SEED both set seed; remove one"


def test_random_weights_and_a_weights_folder_exclude_each_other():
    assert refusal("weights_dir=/w").startswith("weights_dir: holds ImageNet weights, but weights=random")
    assert load("demo", ["weights_dir=/w", "weights=imagenet"]).weights_dir == "/w"


def test_photos_too_small_for_xception_are_refused_unless_it_is_left_out():
    assert refusal("image_size=70") == "image_size: xception needs at least 71 pixels"
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
        ("card: {contact: 2024-13-45}", "cannot be read"),
        ("seed: 1\n---\nseed: 2\n", "cannot be read"),
    ],
)
def test_a_profile_that_cannot_be_read_is_refused(text, part, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert part in refusal(profile=str(path))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("seed: 1\nweights: random\nseed: 2\n", "lines 1 and 3: key 'seed'"),
        ("gate:\n  margin: 0.02\n  policy: better\n  'margin': 1.0\n", "lines 2 and 4: key 'margin'"),
        ("gate: {margin: 0.02}\nseed: 1\ngate: {min_slice: 5}\n", "lines 1 and 3: key 'gate'"),
        ("gate: {margin: 0.02, margin: 1}\n", "line 1: key 'margin'"),
        ("kubeflow:\n  volumes:\n  - claim: a\n    path: /a\n    claim: b\n", "lines 3 and 5: key 'claim'"),
        ("gate: &rules {margin: 0.02, margin: 0.5}\n", "line 1: key 'margin'"),
    ],
)
def test_a_profile_with_a_key_twice_is_refused_with_its_lines(text, part, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert refusal(profile=str(path)) == f"profile {path}, {part} is there twice; remove one"


def test_keys_that_come_by_a_merge_may_be_replaced(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("trainer: &few {epochs: 5, patience: 2}\ntuner: {factor: 2}\n")
    assert load(str(path)).trainer.patience == 2
    path.write_text("kubeflow:\n  learning: &small {cpu: 1, memory: 2}\n  other: {<<: *small, memory: 3}\n")
    assert load(str(path)).kubeflow.other.memory == 3


def test_a_profile_of_comments_has_the_defaults(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("# seed: 1\n")
    assert load(str(path)) == Settings()


def test_a_profile_that_is_not_there_is_refused_with_those_that_are():
    message = refusal(profile="big")
    assert "'big'" in message
    assert ", ".join(profiles()) in message


def test_settings_cannot_be_changed_after_they_are_checked():
    with pytest.raises(ValueError, match="frozen"):
        load("demo").seed = -1


def test_photos_come_from_this_process_unless_another_runner_is_asked_for():
    assert "--runner=FnApiRunner" in load("demo").beam.pipeline_args()
    beam = load("demo", ["beam.runner=flink", "beam.options=['--flink_master=host:8081']"]).beam
    assert beam.pipeline_args() == ["--runner=FlinkRunner", "--flink_master=host:8081"]


@pytest.mark.parametrize("name", ["photos", "größe", "yes and no", "a: b"])
def test_a_folder_may_have_any_name(name):
    assert load("demo", options={"data": name}).data == name


@pytest.mark.parametrize("name", ["2024", "1e5", "inf", "cats 😺"])
def test_a_folder_may_be_named_like_a_number_or_with_an_emoji(name):
    assert load("demo", options={"data": name}).data == name


def test_relative_profiles_are_found_from_the_current_folder(tmp_path, monkeypatch):
    Path(tmp_path / "mine.yaml").write_text("weights: random\nseed: 9\n")
    monkeypatch.chdir(tmp_path)
    assert load("mine.yaml").seed == 9
