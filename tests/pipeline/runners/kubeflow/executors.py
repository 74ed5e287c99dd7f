"""Small executors for the tests of the entry point and the backend emulation."""

from pathlib import Path

from tfx.dsl.components.base.base_executor import BaseExecutor

# Inputs, outputs and parameters of the last execution of `Writes`.
seen: dict = {}


class Writes(BaseExecutor):
    """Executor that writes each output, with a property of each type."""

    def Do(self, input_dict, output_dict, exec_properties):
        seen.update(inputs=input_dict, outputs=output_dict, parameters=exec_properties)
        for key, artifacts in output_dict.items():
            (artifact,) = artifacts
            path = Path(artifact.uri)
            seen[f"{key} exists"] = path.exists()
            (path / "content.txt" if path.is_dir() else path).write_text("content")
            artifact.set_string_custom_property("neighbor", f"{artifact.uri}/content.txt")
            artifact.set_float_custom_property("number", 0.5)
            artifact.set_json_value_custom_property("matrix", {"rows": [{"row": [1, 2]}]})


class WritesNoPage(BaseExecutor):
    """Executor that omits one of its outputs."""

    def Do(self, input_dict, output_dict, exec_properties):
        for key, artifacts in output_dict.items():
            if key != "page" and Path(artifacts[0].uri).is_dir():
                (Path(artifacts[0].uri) / "content.txt").write_text("content")


class Fails(BaseExecutor):
    """Executor that raises an exception."""

    def Do(self, input_dict, output_dict, exec_properties):
        raise ValueError("invalid photos")


class FailsOnce(BaseExecutor):
    """Executor that creates the file `marker` and fails in its first attempt, and succeeds afterwards."""

    def Do(self, input_dict, output_dict, exec_properties):
        marker = Path(exec_properties["marker"])
        if not marker.exists():
            marker.touch()
            raise ConnectionError("the node went away")


class WritesParameterNames(BaseExecutor):
    """Executor that writes the names of its parameters to the file `marker`."""

    def Do(self, input_dict, output_dict, exec_properties):
        Path(exec_properties["marker"]).write_text(" ".join(sorted(exec_properties)))
