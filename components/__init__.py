"""TFX components, one module each. Artifact types resolve as `components.<Name>`, the name they have in ML Metadata."""

import importlib
import os

# Read when Keras and Keras Tuner are imported, which TFX may do first: another project's choice would change a run.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["KERAS_NNX_ENABLED"] = "false"  # takes precedence over keras.json
for _name in (
    "KERAS_MAX_EPOCHS",
    "KERAS_MAX_STEPS_PER_EPOCH",
    "KERASTUNER_ORACLE_IP",
    "KERASTUNER_ORACLE_PORT",
    "KERASTUNER_TUNER_ID",
    "TF_USE_LEGACY_KERAS",  # TensorFlow Transform sets it as it needs it
):
    os.environ.pop(_name, None)


def __getattr__(name: str):
    # Lazy, so that `components.candidates.architectures` can be read without the seconds that importing TFX takes.
    if name[0].isupper():
        artifacts = importlib.import_module("components.artifacts")
        if hasattr(artifacts, name):
            return getattr(artifacts, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
