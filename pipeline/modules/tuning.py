"""Tuner: Hyperband (Li et al., JMLR 2018) over the head's hyperparameters, judged on the eval split."""

import gc
import time

import keras_tuner as kt
import tensorflow_transform as tft
from keras_tuner.errors import FatalError
from keras_tuner.src.engine.trial import Trial, TrialStatus
from keras_tuner.src.tuners.hyperband import HyperbandOracle
from tfx.components.trainer.fn_args_utils import FnArgs
from tfx.components.tuner.component import TunerFnResult

from components import progress
from components.candidates.trial_metrics import TRIAL_SECONDS
from components.pinned_keras import keras
from pipeline.modules.head import EVALUATION_BATCH, batches, build_head, make_deterministic, read_records
from pipeline.modules.preprocessing import VOCABULARY


def tuner_fn(fn_args: FnArgs) -> TunerFnResult:
    """Entry point of TFX's Tuner; settings come in `custom_config`: tuner, batch_size, seed."""
    config = fn_args.custom_config
    make_deterministic(config["seed"])
    transform = tft.TFTransformOutput(fn_args.transform_graph_path)
    breeds = transform.vocabulary_size_by_name(VOCABULARY)
    train = read_records(fn_args.train_files, transform)
    evaluation = read_records(fn_args.eval_files, transform)
    space = config["tuner"]
    tuner = HeadHyperband(
        HeadHyperModel(train.embeddings.shape[1], breeds, space),
        objective=kt.Objective(space["objective"], "min" if space["objective"] == "val_loss" else "max"),
        max_epochs=space["max_epochs"],
        factor=space["factor"],
        seed=config["seed"],
        directory=fn_args.working_dir,
        project_name="hyperband",
        overwrite=True,
    )
    return TunerFnResult(
        tuner=tuner,
        fit_kwargs={
            "x": batches(train, config["batch_size"], config["seed"]),
            "validation_data": batches(evaluation, EVALUATION_BATCH),
            "verbose": 0,
        },
    )


class HeadHyperModel(kt.HyperModel):
    """Heads for trials. Those with as many `units` share one network, whose graphs are traced once.

    Args:
        embedding_size: length of an embedding.
        breeds: number of classes.
        space: the values to try, see `pipeline.settings.Tuner`.
    """

    def __init__(self, embedding_size: int, breeds: int, space: dict):
        super().__init__()
        self._embedding_size, self._breeds, self._space = embedding_size, breeds, space
        self._heads: dict[int, _ReusableHead] = {}

    def build(self, hp: kt.HyperParameters) -> keras.Model:
        """The head of a trial, untrained."""
        low, high = self._space["learning_rate"]
        hyperparameters = {
            "units": hp.Choice("units", self._space["units"]),
            "dropout": hp.Choice("dropout", self._space["dropout"]),
            "learning_rate": hp.Float("learning_rate", low, high, sampling="log"),
            "weight_decay": hp.Choice("weight_decay", self._space["weight_decay"]),
        }
        units = hyperparameters["units"]
        if units not in self._heads:
            self._heads[units] = _ReusableHead(self._embedding_size, self._breeds, hyperparameters)
        return self._heads[units].reset(hyperparameters)


class _ReusableHead:
    """A head whose hyperparameters, except `units`, are variables: a trial with others needs no new graph."""

    def __init__(self, embedding_size: int, breeds: int, hyperparameters: dict):
        self._dropout = _VariableDropout()
        self._model = build_head(embedding_size, breeds, hyperparameters, self._dropout)
        optimizer = self._model.optimizer
        optimizer.weight_decay = keras.Variable(0.0, trainable=False, name="weight_decay")
        optimizer.build(self._model.trainable_variables)
        self._initial = [(variable, variable.numpy()) for variable in self._model.variables + optimizer.variables]

    def reset(self, hyperparameters: dict) -> keras.Model:
        """The model as if new, with these hyperparameters."""
        for variable, value in self._initial:
            variable.assign(value)
        self._dropout.rate.assign(hyperparameters["dropout"])
        self._model.optimizer.learning_rate.assign(hyperparameters["learning_rate"])
        self._model.optimizer.weight_decay.assign(hyperparameters["weight_decay"])
        return self._model


class _VariableDropout(keras.layers.Layer):
    """Dropout with its rate in a variable."""

    def __init__(self):
        super().__init__()
        self.rate = keras.Variable(0.0, trainable=False, name="rate")
        self._seeds = keras.random.SeedGenerator()

    def call(self, inputs, training=False):
        if not training:
            return inputs
        kept = keras.random.uniform(keras.ops.shape(inputs), seed=self._seeds) >= self.rate
        return keras.ops.where(kept, inputs / (1 - self.rate), 0.0)


class TrialError(FatalError):
    """Trials of the search failed; the message names their hyperparameters and the cause."""


class HeadHyperband(kt.Hyperband):
    """Hyperband that records what each trial cost and reports how far the search is."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        total = _trials(self.oracle)
        self._counter = progress.Counter("trials", total)
        self._seconds = {}
        self.oracle.max_trials = total  # TFX asks for the best `max_trials`; Hyperband leaves it None

    def run_trial(self, trial, *args, **kwargs):
        """Runs one trial and takes its time.

        Raises:
            TrialError: the trial failed, and so does the search; Keras Tuner would go on without it and not say why.
        """
        started = time.monotonic()
        try:
            result = super().run_trial(trial, *args, **kwargs)
        except Exception as error:
            raise TrialError(f"{_described(trial)} failed: {type(error).__name__}: {error}") from error
        self._seconds[trial.trial_id] = time.monotonic() - started
        self._counter.add()
        return result

    def search(self, *args, **kwargs):
        """Runs all trials, then notes their seconds beside their hyperparameters, which is what TFX writes down.

        Only then: Hyperband compares those values to tell trials apart.

        Raises:
            TrialError: see `run_trial`; or of three trials in a row, or of all, the objective is no number.
        """
        # Keras Tuner collects garbage twice a trial; what TensorFlow and TFX keep in memory makes that slow.
        gc.collect()
        gc.freeze()
        try:
            super().search(*args, **kwargs)
        except RuntimeError as error:
            self._refuse_failed(error)
            raise
        finally:
            gc.unfreeze()
        if not any(trial.status == TrialStatus.COMPLETED for trial in self.oracle.trials.values()):
            self._refuse_failed(None)
        for trial_id, trial in self.oracle.trials.items():
            trial.hyperparameters.values[TRIAL_SECONDS] = self._seconds[trial_id]

    def _refuse_failed(self, cause: Exception | None) -> None:
        """Raises a TrialError if trials ended without a number; Keras Tuner says only how many they were."""
        failed = [trial for trial in self.oracle.trials.values() if trial.status == TrialStatus.FAILED]
        if failed:
            trials = ", ".join(map(_described, failed[-3:]))
            raise TrialError(
                f"{self.oracle.objective.name} is not a number at the end of {trials}: training diverged, "
                "or embeddings are not finite. Lower the highest tuner.learning_rate; if that does not help, look at "
                "the statistics of the embeddings and at the weights of the backbone"
            ) from cause


def _described(trial: Trial) -> str:
    tried = {name: value for name, value in trial.hyperparameters.values.items() if "/" not in name}
    return f"trial {trial.trial_id} ({', '.join(f'{name}={value:g}' for name, value in tried.items())})"


def _trials(oracle: HyperbandOracle) -> int:
    """Number of trials of a whole search: the sum over the rounds of its brackets."""
    brackets = oracle._get_num_brackets()
    return sum(oracle._get_size(b, r) for b in range(brackets) for r in range(oracle._get_num_rounds(b)))
