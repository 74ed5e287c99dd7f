"""Components of a few lines, for the tests of the container's command."""

from pathlib import Path

from tfx.dsl.components.base.base_executor import BaseExecutor

# What the last executor was given: inputs, outputs, parameters.
seen: dict = {}


class Writes(BaseExecutor):
    """Writes something for each output, and a property of each kind."""

    def Do(self, input_dict, output_dict, exec_properties):
        seen.update(inputs=input_dict, outputs=output_dict, parameters=exec_properties)
        for key, artifacts in output_dict.items():
            (artifact,) = artifacts
            path = Path(artifact.uri)
            seen[f"{key} exists"] = path.exists()
            (path / "content.txt" if path.is_dir() else path).write_text("content")
            artifact.set_string_custom_property("beside", f"{artifact.uri}/content.txt")
            artifact.set_float_custom_property("number", 0.5)
            artifact.set_json_value_custom_property("matrix", {"rows": [{"row": [1, 2]}]})


class WritesNoPage(BaseExecutor):
    """Leaves out one of its outputs."""

    def Do(self, input_dict, output_dict, exec_properties):
        for key, artifacts in output_dict.items():
            if key != "page" and Path(artifacts[0].uri).is_dir():
                (Path(artifacts[0].uri) / "content.txt").write_text("content")


class Fails(BaseExecutor):
    """Fails as a component does."""

    def Do(self, input_dict, output_dict, exec_properties):
        raise ValueError("the photos are wrong")


class FailsOnce(BaseExecutor):
    """Fails at its first attempt, as its parameter `marker`, a file, remembers."""

    def Do(self, input_dict, output_dict, exec_properties):
        marker = Path(exec_properties["marker"])
        if not marker.exists():
            marker.touch()
            raise ConnectionError("the node went away")


class TellsParameters(BaseExecutor):
    """Writes which parameters it was given into the file that `marker` names."""

    def Do(self, input_dict, output_dict, exec_properties):
        Path(exec_properties["marker"]).write_text(" ".join(sorted(exec_properties)))
