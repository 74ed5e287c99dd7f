"""Tuner: TFX's Tuner, which also writes an event file of each trial for TensorBoard."""

from tfx.components import Tuner as TfxTuner
from tfx.components.tuner import executor
from tfx.dsl.components.base.executor_spec import ExecutorClassSpec
from tfx.types import artifact_utils
from tfx.types.standard_component_specs import CUSTOM_CONFIG_KEY, TUNER_RESULTS_KEY
from tfx.utils import json_utils

from components.local_copies import local_output


class Executor(executor.Executor):
    """TFX's executor, for a tuner that has the method `write_event_files` of `pipeline.modules.tuning.HeadSearch`."""

    def Do(self, input_dict, output_dict, exec_properties):
        """See TFX's BaseExecutor."""
        tuner = executor.search(input_dict, exec_properties, self._get_tmp_dir())
        custom_config = json_utils.loads(exec_properties[CUSTOM_CONFIG_KEY])
        with local_output(artifact_utils.get_single_uri(output_dict[TUNER_RESULTS_KEY])) as folder:
            tuner.write_event_files(folder, custom_config["candidate"])
        # After the event files: the copy of a local folder replaces a remote one.
        executor.write_best_hyperparameters(tuner, output_dict)


class Tuner(TfxTuner):
    """Component with the arguments and outputs of TFX's Tuner; the event files are in the output `tuner_results`.

    `custom_config` must have the key candidate: the name of the candidate.
    """

    EXECUTOR_SPEC = ExecutorClassSpec(Executor)
