"""Compiles the graph without running it."""

from pathlib import Path

from google.protobuf import text_format
from tfx.dsl.compiler.compiler import Compiler

from pipeline.graph import create_pipeline
from pipeline.settings import Settings


def compile_graph(settings: Settings, output: Path) -> Path:
    """Writes TFX's intermediate representation of the graph to `output`, in protobuf's text format."""
    ir = Compiler().compile(create_pipeline(settings, run_id="compile"))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text_format.MessageToString(ir), encoding="utf-8")
    return output
