"""From a decision of the gate to what serves: refusals, labels, lineage, model card, and the decision taken again."""

import json
import shutil

import pytest
from tfx.types.standard_artifacts import Model, ModelBlessing, ModelEvaluation

from components.artifacts import GateDecision, IngestReport, Metrics
from components.release.champion_model import ChampionModel, stable_identity
from components.release.model_gate import ModelGate
from serving.registry import Registry
from tests.running import SMALL, Run, catbreeds, run_pipeline

# Anything is let in, so that there are two versions to choose from.
OPEN_GATE = ("gate.min_accuracy=0", "gate.margin=1", "gate.max_slice_drop=1")


@pytest.fixture(scope="module")
def pushed(small, copy_small) -> Run:
    """A workdir with two versions; the first is stable."""
    workdir = copy_small()
    settings = [setting for setting in SMALL if "trainer.epochs" not in setting]
    second = run_pipeline(small.photos, workdir, *settings, "trainer.epochs=3", *OPEN_GATE)
    assert second.process.returncode == 0, second.process.stdout
    assert "Admitted: pushed as version 2." in second.process.stdout
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


def test_gate_json_alone_says_what_was_compared_on_which_photos_by_which_rule_and_what_serves(pushed):
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


def test_models_lists_each_version_with_its_labels_and_why_it_was_admitted(pushed):
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
        "no model is in service to",
    ):
        assert text in table


def test_what_is_damaged_is_named_without_a_traceback_and_hides_nothing_else(pushed, tmp_path):
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


def test_promote_and_rollback_change_what_predict_asks(pushed):
    photo = next(pushed.photos.rglob("*.jpg"))

    def answering():
        return as_json(pushed, "predict", photo)["photos"][0]["model"]["version"]

    assert answering() == 1
    assert "version 2 is stable and replaces version 1" in in_workdir(pushed, "promote", 2).stdout
    assert answering() == 2
    assert "version 1 is stable again and replaces version 2" in in_workdir(pushed, "rollback").stdout
    assert answering() == 1


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("promote", 7), "no version 7; existing versions: 1, 2"),
        (("rollback",), "no version was stable before"),
        (("lineage", 7), "no version 7"),
        (("gate", "--run", "yesterday"), "no ModelGate in run 'yesterday'; there is one in: 2"),
        (("gate", "--policy", "lenient"), "gate.policy"),
        (("gate", "--set", "tuner.factor=2"), "only rules of the gate can be changed: gate.min_accuracy"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(pushed, command, words):
    before = registry(pushed).labels()
    done = in_workdir(pushed, *command)
    assert done.returncode == 2
    assert words in done.stderr
    assert registry(pushed).labels() == before


@pytest.mark.parametrize("command", [("gate",), ("lineage", 1)])
def test_without_a_run_there_is_nothing_to_look_back_at(tmp_path, command):
    done = catbreeds(*command, "--workdir", tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_decision_taken_again_by_its_own_rules_is_the_same(pushed):
    again, decided = as_json(pushed, "gate"), gate_document(pushed)
    for key in ("run", "outcome", "reasons", "rules", "majority", "comparison", "slices", "measured_on"):
        assert again[key] == decided[key]


def test_a_decision_taken_again_by_other_rules_is_another_and_pushes_nothing(pushed):
    rules = ("--set", "gate.min_accuracy=1", "--set", "gate.above_majority=true")
    refused = in_workdir(pushed, "gate", "--policy", "significantly_better", *rules)
    assert refused.returncode == 3
    assert "The gate would refuse resnet50" in refused.stdout
    assert "is below the least allowed, gate.min_accuracy=1" in refused.stdout
    assert "above_majority=True" in refused.stdout
    assert "fails gate.policy=significantly_better against version 1" in refused.stdout
    assert registry(pushed).versions() == [1, 2]


def test_lineage_leads_from_a_version_to_data_weights_schema_hyperparameters_and_code(pushed):
    found = as_json(pushed, "lineage", 2)
    record = registry(pushed).record(2)
    assert found["hyperparameters"] == record["hyperparameters"]
    assert found["weights"] == record["backbone"]
    assert found["data"]["data"] == str(pushed.photos)
    assert found["data"]["learned_digest"] == record["data_digest"]
    assert found["settings"]["trainer"]["epochs"] == 3
    assert found["schema"]["schema_file"].endswith("schemas/photos/schema.pbtxt")
    assert found["code"]["Trainer-resnet50"] == record["code_digest"]
    nodes = {execution["node"]: execution for execution in found["executions"]}
    assert nodes.keys() >= {"ImageExampleGen", "Backbone-resnet50", "Tuner-resnet50", "Evaluator-gate", "ModelGate"}
    # The Trainer ran again, on what the first run had made.
    assert nodes["Trainer-resnet50"]["run"] == nodes["Pusher"]["run"] == found["run"]
    assert nodes["ImageExampleGen"]["run"] != found["run"]
    assert nodes["Trainer-resnet50"]["parameters"]["epochs"] == 3
    tree = in_workdir(pushed, "lineage", 2).stdout
    for text in ("version 2", "Tuner-resnet50", record["backbone"]["weights_digest"][:12], "ImageExampleGen"):
        assert text in tree


def test_lineage_lists_the_photos_that_a_version_learned_from(pushed):
    rows = as_json(pushed, "lineage", 2, "--photos")
    paths = in_workdir(pushed, "lineage", 2, "--photos").stdout.splitlines()
    assert paths == [row["path"] for row in rows]
    assert all((pushed.photos / path).is_file() for path in paths)
    ingest = json.loads((pushed.workdir / "report" / "ingest.json").read_text())
    assert len(paths) == sum(counts["train"] for counts in ingest["breeds"].values()) < 75


def test_a_model_card_goes_with_each_version(pushed):
    gate = gate_document(pushed)
    version = registry(pushed).path(2)
    card = json.loads((version / "model_card.json").read_text())
    assert (card["name"], card["version"]) == ("catbreeds", 2)
    assert card["breeds"] == sorted(path.name for path in pushed.photos.iterdir())
    assert card["metrics"]["overall"]["accuracy"] == gate["candidate"]["test_accuracy"]
    assert sum(card["data"]["splits"].values()) == card["data"]["photos"] == 75
    assert card["model"]["weights_licence"] == "none: the weights are random"
    assert card["lineage"]["model_digest"] == gate["candidate"]["model_digest"]
    assert any("answers one of them for any photo" in limit for limit in card["limits"])
    page = (version / "model_card.html").read_text()
    for text in ("Model card: catbreeds version 2", *card["limits"], *card["breeds"], card["lineage"]["model_digest"]):
        assert text in page
    assert "http" not in page


class Admission:
    """Decides on the candidate of a run again, against a registry that a test changes."""

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

    def _written(self, kind, name):
        (self.folder / name).mkdir()
        return self._artifact(kind, self.folder / name)

    def champion(self) -> dict:
        """What ChampionModel says of the version in service."""
        self.model = self._written(Model, "champion")
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
        """What ModelGate decides."""
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
            blessing=self._written(ModelBlessing, "blessing"),
            decision=self._written(GateDecision, "decision"),
            metrics=self._written(Metrics, "metrics"),
            min_slice=20,
            max_slice_drop=1.0,
            code_digest="",
            **rules,
        )
        return json.loads((self.folder / "decision" / "gate.json").read_text())


@pytest.fixture
def admission(pushed, tmp_path) -> Admission:
    return Admission(pushed, tmp_path)


def test_a_degraded_challenger_is_refused(pushed, admission):
    champion = admission.champion()
    assert (champion["version"], champion["unreadable"], champion["is_candidate"]) == (1, None, False)
    assert (admission.folder / "champion" / "Format-Serving" / "saved_model.pb").is_file()
    path = admission.evaluation / "outcomes.jsonl"
    outcomes = [json.loads(line) | {"correct": False} for line in path.read_text().splitlines()]
    path.write_text("\n".join(map(json.dumps, outcomes)))
    gate = admission.decide(pushed.artifact("Evaluator-champion", "evaluation"))
    assert (gate["outcome"], gate["blessed"]) == ("refused", False)
    assert any("fails gate.policy=not_worse against version 1" in reason for reason in gate["reasons"])
    assert gate["comparison"]["only_champion_right"] > 0


def test_an_unreadable_champion_is_said_and_the_absolute_thresholds_decide(admission):
    (admission.registry.base / "1" / "saved_model.pb").write_bytes(b"damaged")
    assert admission.champion()["unreadable"]
    gate = admission.decide()
    assert (gate["blessed"], gate["comparison"]) == (True, None)
    reasons = " ".join(gate["reasons"])
    assert "version 1 in service cannot be read" in reasons
    assert "only the absolute thresholds count" in reasons


def test_another_set_of_breeds_is_said_and_the_absolute_thresholds_decide(admission):
    path = admission.registry.base / "1" / "assets.extra" / "catbreeds.json"
    record = json.loads(path.read_text())
    gone, *others = record["breeds"]
    path.write_text(json.dumps(record | {"breeds": [*others, "Bengal"]}))
    assert admission.champion()["unreadable"] is None
    assert not (admission.folder / "champion" / "Format-Serving").exists()
    gate = admission.decide()
    assert (gate["blessed"], gate["comparison"]) == (True, None)
    assert f"new {gone}, gone Bengal; only the absolute thresholds count" in " ".join(gate["reasons"])
