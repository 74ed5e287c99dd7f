"""Keys of a trial's cost in the rows of TFX's tuner results (`tuner_results.json`)."""

TRIAL_SECONDS = "tuner/seconds"  # float, wall time; written by pipeline.modules.tuning
# Written by Keras Tuner for networks: a trial trains epochs [TRIAL_INITIAL_EPOCH, TRIAL_EPOCHS). Logistic regressions
# have no epochs.
TRIAL_EPOCHS = "tuner/epochs"
TRIAL_INITIAL_EPOCH = "tuner/initial_epoch"
