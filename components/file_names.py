"""Names of the files in artifacts that a component writes and another component or a command reads."""

# ImageExampleGen, `report`: one row for each file; counts by breed and split.
PHOTOS_FILE = "photos.jsonl"
INGEST_REPORT_FILE = "report.json"
# DataGate, `verdict`.
VERDICT_FILE = "verdict.json"
# RetrainGate, `decision`.
RETRAIN_FILE = "retrain.json"
# Backbone, in its SavedModel.
BACKBONE_RECORD_FILE = "assets.extra/backbone.json"
# Tuner, `tuner_results`: one row for each trial; an event file for each, in a sub-folder. TFX requires this name.
TUNER_RESULTS_FILE = "tuner_results.json"
# Trainer, `model_run`: seconds, epochs, best_epoch, history of a network, iterations of a logistic regression; one row
# for each photo of train and eval, predicted by a head that was fitted without it; event files.
TRAINING_FILE = "training.json"
OUT_OF_FOLD_FILE = "out_of_fold.jsonl"
# Evaluator, `evaluation`: metrics overall and by breed; one row for each photo.
METRICS_FILE = "metrics.json"
OUTCOMES_FILE = "outcomes.jsonl"
# BackboneSelector, `comparison`.
COMPARISON_FILE = "comparison.json"
# ChampionModel, `champion`.
CHAMPION_FILE = "champion.json"
# ModelGate, `decision`.
GATE_FILE = "gate.json"
# ServingCheck, `report`: the checks and their results; golden requests, which are photos with expected predictions.
SERVING_CHECK_FILE = "serving_check.json"
SERVING_CHECK_GOLDEN_FILE = "golden.json"
# Pusher, `pushed`.
PUSH_FILE = "push.json"
# Rollout, `outcome`.
ROLLOUT_FILE = "rollout.json"
