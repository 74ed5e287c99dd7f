"""Precision of the model server: that of each version's model record, or that of the flag for all versions."""

import json

import pytest

from tests.amx import ROUNDED, SUM, needs_amx
from tests.serving.model_server.servers import ModelServer, embedded_server_only, eventually
from tests.serving.model_server.test_server_process import start
from tests.serving.model_server.toys import Rounding

pytestmark = needs_amx


@pytest.fixture
def rounding(tmp_path):
    """Base path of a version without a record and of versions in float32 and bfloat16."""
    records = [None, {"backbone": {"precision": "float32"}}, {"backbone": {"precision": "bfloat16"}}]
    for version, record in enumerate(records, 1):
        path = tmp_path / "rounding" / str(version)
        Rounding().save(path)
        if record:
            (path / "assets.extra").mkdir()
            (path / "assets.extra" / "catbreeds.json").write_text(json.dumps(record))
    return tmp_path / "rounding"


def results(folder, base, *flags: str) -> list[float]:
    """Return the result of each version."""
    config = folder / "models.config"
    config.write_text(
        f'model_config_list {{ config {{ name: "rounding" base_path: "{base}" model_platform: "tensorflow" '
        "model_version_policy { all {} } } }"
    )
    server = ModelServer(folder, f"--model_config_file={config}", *flags)
    try:
        eventually(lambda: list(server.states("rounding").values()) == ["AVAILABLE"] * 3)
        responses = [server.predict("rounding", version, x=[ROUNDED]).result() for version in (1, 2, 3)]
        return [response.outputs["y"].float_val[0] for response in responses]
    finally:
        server.stop()


@embedded_server_only
def test_each_version_is_computed_in_the_precision_of_its_record(rounding, tmp_path):
    assert results(tmp_path, rounding) == [SUM["float32"], SUM["float32"], SUM["bfloat16"]]


def test_with_the_flag_all_versions_are_computed_in_bfloat16(rounding, tmp_path):
    assert results(tmp_path, rounding, "--mixed_precision=bfloat16") == [SUM["bfloat16"]] * 3


@embedded_server_only
def test_an_unknown_precision_is_rejected(rounding):
    process = start(f"--model_base_path={rounding}", "--mixed_precision=float16")
    assert process.returncode == 2
    assert "--mixed_precision: invalid choice: 'float16'" in process.stderr
