"""Keys in the rows of TFX's tuner results that say what a trial cost."""

TRIAL_SECONDS = "tuner/seconds"
# Keras Tuner's own.
TRIAL_EPOCHS = "tuner/epochs"
TRIAL_FIRST_EPOCH = "tuner/initial_epoch"
