"""Names by which training tells its costs to those that compare."""

# In the Trainer's model_run artifact: seconds, epochs, best_epoch, history.
TRAINING_FILE = "training.json"

# In the rows of TFX's tuner results; the last two are Keras Tuner's own.
TRIAL_SECONDS = "tuner/seconds"
TRIAL_EPOCHS = "tuner/epochs"
TRIAL_FIRST_EPOCH = "tuner/initial_epoch"

# The file of those rows, a list in JSON, as TFX names it.
TUNER_RESULTS_FILE = "tuner_results.json"
