"""Gate decisions, replays, labels, lineage and model cards of a workdir with two versions."""

import json
import shutil

import pytest
from tfx.types.standard_artifacts import Model, ModelBlessing, ModelEvaluation

from components.artifacts import GateDecision, IngestReport, Metrics
from components.candidates.hyperparameters import describe_hyperparameters
from components.release.champion_model import ChampionModel
from components.release.model_gate import ModelGate
from components.stable_version import stable_identity
from serving.registry import Registry
from tests.running import SMALL, Run, catbreeds, run_pipeline

# Every candidate passes, so that there are two versions.
OPEN_GATE = ("gate.min_accuracy=0", "gate.policy=not_worse", "gate.margin=1", "gate.max_slice_drop=1")


@pytest.fixture(scope="module")
def pushed(small, copy_small) -> Run:
    """A workdir with two versions; the first is stable."""
    workdir = copy_small()
    settings = [setting for setting in SMALL if "trainer.epochs" not in setting]
    second = run_pipeline(small.photos, workdir, *settings, "trainer.epochs=3", *OPEN_GATE)
    assert second.process.returncode == 0, second.process.stdout
    assert "Passed: pushed as version 2." in second.process.stdout
    return second


def in_workdir(run, *arguments):
    return catbreeds(*arguments, "--workdir", run.workdir)


def as_json(run, *arguments):
    done = in_workdir(run, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def registry(run):
    return Registry(run.workdir / "serving" / "catbreeds")


def gate_document(run):
    return json.loads((run.workdir / "report" / "gate.json").read_text())


def test_gate_json_contains_rules_photos_comparison_and_labels(pushed):
    gate = gate_document(pushed)
    assert gate["rules"] == {
        "min_accuracy": 0.0,
        "min_test_photos": 10,
        "above_majority": False,
        "policy": "not_worse",
        "margin": 1.0,
        "min_slice": 20,
        "max_slice_drop": 1.0,
    }
    assert gate["measured_on"]["split"] == "test"
    assert gate["measured_on"]["photos"] == gate["candidate"]["test_photos"] == gate["champion"]["test_photos"]
    assert gate["comparison"]["photos"] == gate["measured_on"]["photos"]
    assert (gate["champion"]["version"], gate["pushed_version"], gate["serving"]) == (1, 2, {"stable": 1})


def test_models_lists_each_version_with_its_labels_and_reasons_for_passing(pushed):
    first, second = as_json(pushed, "models")
    assert (first["version"], first["labels"], second["version"], second["labels"]) == (1, ["stable"], 2, [])
    assert second["backbone"] == "resnet50"
    low, high = second["test_accuracy_ci95"]
    assert 0 <= low <= second["test_accuracy"] <= high <= 1
    assert any("against version 1" in reason for reason in second["reasons"])
    table = in_workdir(pushed, "models").stdout
    for text in (
        "version 1 stable\n",
        "resnet50",
        first["data_digest"][:8],
        "minutes ago",
        "no champion to compare with",
    ):
        assert text in table


def test_damaged_files_are_reported_without_a_traceback_and_other_versions_stay_visible(pushed, tmp_path):
    base = tmp_path / "serving" / "catbreeds"
    shutil.copytree(registry(pushed).base, base)
    (base / "1" / "admission.json").write_text("{}")
    shutil.rmtree(base / "2" / "assets.extra")
    (tmp_path / "metadata.sqlite").write_text("garbage")
    listed = catbreeds("models", "--workdir", tmp_path)
    assert listed.returncode == 0
    assert f"{base / '1'}: damaged" in listed.stdout
    assert f"{base / '2' / 'assets.extra' / 'catbreeds.json'}: cannot be read" in listed.stdout
    for command in (("promote", 2), ("gate",), ("lineage", 1), ("report",)):
        done = catbreeds(*command, "--workdir", tmp_path)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_promote_and_rollback_change_the_version_that_predict_uses(pushed):
    photo = next(pushed.photos.rglob("*.jpg"))

    def predicting_version():
        return as_json(pushed, "predict", photo)["photos"][0]["model"]["version"]

    assert predicting_version() == 1
    assert "version 2 is stable (was version 1)" in in_workdir(pushed, "promote", 2).stdout
    assert predicting_version() == 2
    assert "version 1 is stable again (was version 2)" in in_workdir(pushed, "rollback").stdout
    assert predicting_version() == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("promote", 7), "no version 7; existing versions: 1, 2"),
        (("rollback",), "no version was stable before"),
        (("lineage", 7), "no version 7"),
        (("gate", "--run", "yesterday"), "run 'yesterday' has no finished ModelGate; runs that have one: 2"),
        (("gate", "--policy", "lenient"), "gate.policy"),
        (("gate", "--set", "tuner.factor=2"), "only the rules of the gate can be changed: gate.min_accuracy"),
    ],
)
def test_invalid_commands_report_the_error_and_change_nothing(pushed, command, message):
    before = registry(pushed).labels()
    done = in_workdir(pushed, *command)
    assert done.returncode == 2
    assert message in done.stderr
    assert registry(pushed).labels() == before


@pytest.mark.parametrize("command", [("gate",), ("lineage", 1)])
def test_gate_and_lineage_fail_without_a_run(tmp_path, command):
    done = catbreeds(*command, "--workdir", tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_replay_with_the_same_rules_returns_the_same_decision(pushed):
    replayed, decided = as_json(pushed, "gate"), gate_document(pushed)
    for key in ("run", "outcome", "reasons", "rules", "majority", "comparison", "power", "slices", "measured_on"):
        assert replayed[key] == decided[key]


def test_replay_with_other_rules_changes_the_decision_and_pushes_nothing(pushed):
    rules = ("--set", "gate.min_accuracy=1", "--set", "gate.above_majority=true")
    rejected = in_workdir(pushed, "gate", "--policy", "significantly_better", *rules)
    assert rejected.returncode == 3
    assert "Verdict for resnet50: rejected" in rejected.stdout
    assert "is below gate.min_accuracy=1" in rejected.stdout
    assert "above_majority=True" in rejected.stdout
    assert "fails gate.policy=significantly_better against version 1" in rejected.stdout
    assert registry(pushed).versions() == [1, 2]


def test_power_is_printed_for_each_policy_with_the_changed_rules(pushed):
    rules = ("--policy", "no_harm", "--set", "gate.margin=0.3")
    printed = in_workdir(pushed, "gate", *rules, "--power").stdout
    power = json.loads(in_workdir(pushed, "gate", *rules, "--json").stdout)["power"]
    assert f"Power of the comparison with the champion: {power['summary']}\n" in printed
    assert "gate.policy=no_harm with gate.margin=0.3 rejects" in printed
    for row, line in zip(power["policies"], printed.splitlines()[-4:], strict=True):
        needed = f"{row['photos_needed']:,}" if row["photos_needed"] else "over 20,000"
        numbers = [f"{row['rejects_equal']:.1%}", f"{row['passes_worse']:.1%}", needed]
        assert line.split() == [row["policy"], *" ".join(numbers).split()]
    assert "Power" not in in_workdir(pushed, "gate").stdout


def test_lineage_traces_a_version_to_data_weights_schema_hyperparameters_and_code(pushed):
    lineage = as_json(pushed, "lineage", 2)
    record = registry(pushed).record(2)
    assert lineage["hyperparameters"] == record["hyperparameters"]
    assert lineage["weights"] == record["backbone"]
    assert lineage["data"]["data"] == str(pushed.photos)
    assert lineage["data"]["learned_digest"] == record["data_digest"]
    assert lineage["settings"]["trainer"]["epochs"] == 3
    assert lineage["schema"]["schema_file"].endswith("schemas/photos/schema.pbtxt")
    assert lineage["code"]["Trainer-resnet50"] == record["code_digest"]
    nodes = {execution["node"]: execution for execution in lineage["executions"]}
    assert nodes.keys() >= {"ImageExampleGen", "Backbone-resnet50", "Tuner-resnet50", "Evaluator-gate", "ModelGate"}
    # The second run trained again and reused cached results of the first run.
    assert nodes["Trainer-resnet50"]["run"] == nodes["Pusher"]["run"] == lineage["run"]
    assert nodes["ImageExampleGen"]["run"] != lineage["run"]
    assert nodes["Trainer-resnet50"]["parameters"]["epochs"] == 3
    tree = " ".join(in_workdir(pushed, "lineage", 2).stdout.split())
    assert describe_hyperparameters(record["hyperparameters"]) in tree
    for text in ("version 2", "Tuner-resnet50", record["backbone"]["weights_digest"][:12], "ImageExampleGen"):
        assert text in tree


def test_lineage_lists_the_train_photos_of_a_version(pushed):
    rows = as_json(pushed, "lineage", 2, "--photos")
    paths = in_workdir(pushed, "lineage", 2, "--photos").stdout.splitlines()
    assert paths == [row["path"] for row in rows]
    assert all((pushed.photos / path).is_file() for path in paths)
    ingest = json.loads((pushed.workdir / "report" / "ingest.json").read_text())
    assert len(paths) == sum(counts["train"] for counts in ingest["breeds"].values()) < 75


def test_each_version_has_a_model_card(pushed):
    gate = gate_document(pushed)
    version = registry(pushed).path(2)
    card = json.loads((version / "model_card.json").read_text())
    assert (card["name"], card["version"]) == ("catbreeds", 2)
    assert card["breeds"] == sorted(path.name for path in pushed.photos.iterdir())
    assert card["metrics"]["overall"]["accuracy"] == gate["candidate"]["test_accuracy"]
    assert sum(card["data"]["splits"].values()) == card["data"]["photos"] == 75
    (backbone,) = card["model"]["backbones"]
    assert backbone == {
        "name": "resnet50",
        "weights": "random",
        "licence": "none: the weights are random",
        "image_size": 32,
        "precision": "float32",
    }
    assert card["lineage"]["model_digest"] == gate["candidate"]["model_digest"]
    assert any("always predicts one of its" in limit for limit in card["limits"])
    assert card["admission"]["power"] == gate["power"]
    page = (version / "model_card.html").read_text()
    assert "Power of the comparison with the champion: on " in page
    for text in ("Model card: catbreeds version 2", *card["limits"], *card["breeds"], card["lineage"]["model_digest"]):
        assert text in page
    assert "http" not in page


class GateRerun:
    """ChampionModel and ModelGate, rerun on the candidate of a run with a registry that a test modifies."""

    def __init__(self, run: Run, folder):
        self.run, self.folder = run, folder
        self.registry = Registry(folder / "serving" / "catbreeds")
        shutil.copytree(registry(run).base, self.registry.base)
        self.candidate = self._artifact(Model, run.artifact("BackboneSelector", "winner"))
        self.evaluation = folder / "evaluation"
        shutil.copytree(run.artifact("Evaluator-gate", "evaluation"), self.evaluation)

    def _artifact(self, kind, uri):
        artifact = kind()
        artifact.uri = str(uri)
        return artifact

    def _output(self, kind, name):
        (self.folder / name).mkdir()
        return self._artifact(kind, self.folder / name)

    def champion(self) -> dict:
        """Run ChampionModel and return champion.json."""
        self.model = self._output(Model, "champion")
        identity = stable_identity(self.registry)
        ChampionModel.test_call(
            candidate=self.candidate,
            champion=self.model,
            registry=str(self.registry.base),
            code_digest="",
            stable=identity,
        )
        return json.loads((self.folder / "champion" / "champion.json").read_text())

    def decide(self, champion_evaluation=None, **rules) -> dict:
        """Run ModelGate and return gate.json."""
        if champion_evaluation is None:
            (self.folder / "none").mkdir()
            (self.folder / "none" / "metrics.json").write_text("null")
        rules = {"min_accuracy": 0.0, "min_test_photos": 1, "policy": "not_worse", "margin": 0.02, **rules}
        rules = {"above_majority": 0, **rules}
        ModelGate.test_call(
            candidate=self.candidate,
            candidate_evaluation=self._artifact(ModelEvaluation, self.evaluation),
            champion=self.model,
            champion_evaluation=self._artifact(ModelEvaluation, champion_evaluation or self.folder / "none"),
            ingest=self._artifact(IngestReport, self.run.artifact("ImageExampleGen", "report")),
            blessing=self._output(ModelBlessing, "blessing"),
            decision=self._output(GateDecision, "decision"),
            metrics=self._output(Metrics, "metrics"),
            min_slice=20,
            max_slice_drop=1.0,
            code_digest="",
            **rules,
        )
        return json.loads((self.folder / "decision" / "gate.json").read_text())


@pytest.fixture
def rerun(pushed, tmp_path) -> GateRerun:
    return GateRerun(pushed, tmp_path)


def test_a_degraded_candidate_is_rejected(pushed, rerun):
    champion = rerun.champion()
    assert (champion["version"], champion["unreadable"], champion["is_candidate"]) == (1, None, False)
    assert (rerun.folder / "champion" / "Format-Serving" / "saved_model.pb").is_file()
    path = rerun.evaluation / "outcomes.jsonl"
    outcomes = [json.loads(line) | {"correct": False} for line in path.read_text().splitlines()]
    path.write_text("\n".join(map(json.dumps, outcomes)))
    gate = rerun.decide(pushed.artifact("Evaluator-champion", "evaluation"))
    assert (gate["outcome"], gate["blessed"]) == ("refused", False)
    assert any("fails gate.policy=not_worse against version 1" in reason for reason in gate["reasons"])
    assert gate["comparison"]["only_champion_right"] > 0


def test_with_an_unreadable_champion_only_the_absolute_thresholds_apply(rerun):
    (rerun.registry.base / "1" / "saved_model.pb").write_bytes(b"damaged")
    assert rerun.champion()["unreadable"]
    gate = rerun.decide()
    assert (gate["blessed"], gate["comparison"]) == (True, None)
    reasons = " ".join(gate["reasons"])
    assert "champion version 1 cannot be loaded" in reasons
    assert "only the absolute thresholds apply" in reasons


def test_with_other_breeds_only_the_absolute_thresholds_apply(rerun):
    path = rerun.registry.base / "1" / "assets.extra" / "catbreeds.json"
    record = json.loads(path.read_text())
    added, *others = record["breeds"]
    path.write_text(json.dumps(record | {"breeds": [*others, "Bengal"]}))
    assert rerun.champion()["unreadable"] is None
    assert not (rerun.folder / "champion" / "Format-Serving").exists()
    gate = rerun.decide()
    assert (gate["blessed"], gate["comparison"]) == (True, None)
    assert f"(added: {added}; removed: Bengal): only the absolute thresholds apply" in " ".join(gate["reasons"])
