"""The precision in which a CPU computes: detection of AMX, `auto`, and models without a recorded precision."""

import pytest

from serving import precision

# Features of two CPUs, shortened.
SAPPHIRE_RAPIDS = "fpu sse4_2 avx2 avx512f avx512_bf16 amx_bf16 avx512_fp16 amx_tile amx_int8"
ICE_LAKE = "fpu sse4_2 avx2 avx512f avx512_vnni"


@pytest.fixture
def cpu(tmp_path, monkeypatch):
    """Function that replaces the features of this machine's CPU."""

    def replace(features: str | None) -> None:
        file = tmp_path / "cpuinfo"
        file.unlink(missing_ok=True)
        if features is not None:
            file.write_text(f"processor\t: 0\nmodel name\t: CPU with amx_bf16 amx_tile\nflags\t\t: {features}\n" * 2)
        monkeypatch.setattr(precision, "_CPU_INFO", file)

    return replace


@pytest.mark.parametrize(
    ("features", "setting", "expected"),
    [
        (SAPPHIRE_RAPIDS, "auto", "bfloat16"),
        (SAPPHIRE_RAPIDS, "bfloat16", "bfloat16"),
        (SAPPHIRE_RAPIDS, "float32", "float32"),
        (ICE_LAKE, "auto", "float32"),
        (ICE_LAKE, "float32", "float32"),
        (SAPPHIRE_RAPIDS.replace("amx_bf16", ""), "auto", "float32"),
        (None, "auto", "float32"),
    ],
)
def test_auto_is_bfloat16_on_a_cpu_with_amx(cpu, features, setting, expected):
    cpu(features)
    assert precision.resolve(setting) == expected


def test_bfloat16_is_rejected_on_a_cpu_without_amx(cpu):
    cpu(ICE_LAKE)
    with pytest.raises(
        precision.PrecisionError, match=r"precision: bfloat16 needs a CPU with AMX .* precision=float32"
    ):
        precision.resolve("bfloat16")
    assert precision.usable("bfloat16") == "float32"


def test_a_record_without_precision_is_of_a_float32_model():
    assert precision.precision_of({"backbone": {"architecture": "xception"}}) == "float32"
    assert precision.precision_of({"breeds": []}) == "float32"  # a head
    assert precision.precision_of({"backbone": {"precision": "bfloat16"}}) == "bfloat16"
