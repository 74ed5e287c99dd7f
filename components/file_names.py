"""Names of the files in artifacts that one component writes and another, or a command, reads."""

# ImageExampleGen, `report`: a row for each file found; counts by breed and split.
PHOTOS_FILE = "photos.jsonl"
INGEST_REPORT_FILE = "report.json"
# DataGate, `verdict`.
VERDICT_FILE = "verdict.json"
# RetrainGate, `decision`.
RETRAIN_FILE = "retrain.json"
# Backbone, in its SavedModel.
BACKBONE_RECORD_FILE = "assets.extra/backbone.json"
# Tuner, `tuner_results`: a list with a row for each trial. TFX chose the name.
TUNER_RESULTS_FILE = "tuner_results.json"
# Trainer, `model_run`: seconds, epochs, best_epoch, history.
TRAINING_FILE = "training.json"
# Evaluator, `evaluation`: metrics overall and by breed; a row for each photo.
METRICS_FILE = "metrics.json"
OUTCOMES_FILE = "outcomes.jsonl"
# BackboneSelector, `comparison`.
COMPARISON_FILE = "comparison.json"
# ChampionModel, `champion`.
CHAMPION_FILE = "champion.json"
# ModelGate, `decision`.
GATE_FILE = "gate.json"
# ServingCheck, `report`: what it checked; photos with the answers that were right.
SERVING_CHECK_FILE = "serving_check.json"
SERVING_ANSWERS_FILE = "golden.json"
# Pusher, `pushed`.
PUSH_FILE = "push.json"
# Rollout, `outcome`.
ROLLOUT_FILE = "rollout.json"
