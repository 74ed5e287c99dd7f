"""Keras uses the settings of this project, not those of the environment or the keras.json of the machine."""

import ast
import json
import os
import subprocess
import sys

from pipeline.settings import ROOT

OTHER_ENVIRONMENT = {
    "KERAS_BACKEND": "jax",
    "KERAS_MAX_EPOCHS": "1",
    "KERAS_MAX_STEPS_PER_EPOCH": "1",
    "KERAS_NNX_ENABLED": "true",
    "KERASTUNER_TUNER_ID": "chief",
    "KERASTUNER_ORACLE_IP": "127.0.0.1",
    "KERASTUNER_ORACLE_PORT": "9",
    "TF_USE_LEGACY_KERAS": "0",
}
OTHER_KERAS_JSON = {"backend": "torch", "floatx": "float16", "epsilon": 0.5, "image_data_format": "channels_first"}
CODE = """
import pipeline.modules.tuning
import json, os, keras
c = keras.config
settings = [c.backend(), c.floatx(), c.epsilon(), c.image_data_format(), c.dtype_policy().name, c.max_epochs()]
print(json.dumps([*settings, c.max_steps_per_epoch(), keras.layers.Dense(1).compute_dtype, dict(os.environ)]))
"""


def test_keras_ignores_settings_of_other_projects(tmp_path):
    (tmp_path / "keras.json").write_text(json.dumps(OTHER_KERAS_JSON | {"nnx_enabled": True}))
    environment = {**os.environ, **OTHER_ENVIRONMENT, "KERAS_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    *settings, variables = json.loads(done.stdout.splitlines()[-1])
    assert settings == ["tensorflow", "float32", 1e-7, "channels_last", "float32", None, None, "float32"]
    pinned = {"KERAS_BACKEND": "tensorflow", "KERAS_NNX_ENABLED": "false", "TF_USE_LEGACY_KERAS": "1"}
    assert {name: variables[name] for name in OTHER_ENVIRONMENT if name in variables} == pinned


def test_all_modules_import_keras_from_pinned_keras():
    imports = {}
    for path in (path for name in ("components", "pipeline", "serving") for path in (ROOT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if "keras" in names or (isinstance(node, ast.ImportFrom) and node.module == "keras"):
                imports[str(path.relative_to(ROOT))] = node.lineno
    assert list(imports) == ["components/keras_config.py"]
