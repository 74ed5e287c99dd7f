"""Tuner module: searches the hyperparameters of a head, scored on eval.

Linear heads are solved as logistic regressions. Networks are searched with Hyperband (Li et al., JMLR 2018).
"""

import functools
import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras_tuner as kt
import numpy as np
import tensorflow_transform as tft
from keras_tuner.errors import FatalError
from keras_tuner.src.engine.trial import Trial, TrialStatus
from keras_tuner.src.tuners.hyperband import HyperbandOracle
from tfx.components.trainer.fn_args_utils import FnArgs
from tfx.components.tuner.component import TunerFnResult

from components import progress
from components.candidates.embedding_features import feature_depth
from components.candidates.trial_metrics import TRIAL_EPOCHS, TRIAL_INITIAL_EPOCH, TRIAL_SECONDS
from components.keras_config import keras
from pipeline.modules import logistic_regression
from pipeline.modules.event_files import learning_curves, write_head
from pipeline.modules.head import (
    Records,
    ReusableHead,
    eval_metrics,
    hyperparameters_of,
    make_deterministic,
    one_element_dataset,
    read_splits,
    require_memory,
    use_one_thread,
    used_columns,
)
from pipeline.modules.preprocessing import VOCABULARY

_INSPECT_EMBEDDINGS = "inspect the statistics of the embeddings and the weights of the backbone"


def tuner_fn(fn_args: FnArgs) -> TunerFnResult:
    """Entry point of TFX's Tuner. `fn_args.custom_config` has the keys tuner, batch_size and seed."""
    use_one_thread()
    transform = tft.TFTransformOutput(fn_args.transform_graph_path)
    breeds = transform.vocabulary_size_by_name(VOCABULARY)
    space = fn_args.custom_config["tuner"]
    blocks, heads = "all" if "all" in space["blocks"] else "last", len(space["l2"]) * breeds
    check = functools.partial(require_memory, "Tuner", blocks, heads)
    _, splits = read_splits({"train": fn_args.train_files, "eval": fn_args.eval_files}, transform, check)
    return head_search(splits["train"], splits["eval"], breeds, fn_args.custom_config, fn_args.working_dir)


def head_search(
    train: Records, evaluation: Records, breeds: int, config: dict[str, Any], directory: str
) -> TunerFnResult:
    """Return the search for the best head, and the arguments of its method `search`.

    Args:
        train: Photos that the heads are fitted to.
        evaluation: Photos that the heads are scored on.
        breeds: Number of breeds.
        config: `pipeline.settings.TunerSettings` as a dictionary (key tuner), batch_size and seed.
        directory: Folder for the files of Keras Tuner.

    Raises:
        TrialError: If an embedding is not finite.
    """
    for split, records in (("train", train), ("eval", evaluation)):
        if not np.isfinite(records.embeddings).all():
            raise TrialError(f"embeddings of {split} are not finite: {_INSPECT_EMBEDDINGS}")
    make_deterministic(config["seed"])
    space = config["tuner"]
    if not any(feature_depth(name) for name in train.embedding_sizes):
        space = space | {"blocks": space["blocks"][:1]}  # each backbone has one block only
    tuner = HeadSearch(
        HeadHyperModel(train.embedding_sizes, breeds, space, config["batch_size"]),
        solve=lambda: solved_heads(train, evaluation, breeds, space),
        space=space,
        objective=kt.Objective(space["objective"], "min" if space["objective"] == "val_loss" else "max"),
        max_epochs=space["max_epochs"],
        factor=space["factor"],
        seed=config["seed"],
        directory=directory,
        project_name="hyperband",
        overwrite=True,
    )
    return TunerFnResult(
        tuner=tuner,
        fit_kwargs={
            "x": one_element_dataset(train),
            "validation_data": one_element_dataset(evaluation),
            "verbose": 0,
        },
    )


def sample_hyperparameters(hp: kt.HyperParameters, space: dict) -> dict:
    """Register the search space of the networks with Keras Tuner and return the values of the current trial."""
    low, high = space["learning_rate"]
    return {
        "kind": hp.Fixed("kind", "network"),
        "blocks": hp.Choice("blocks", space["blocks"]),
        "units": hp.Choice("units", space["units"]),
        "dropout": hp.Choice("dropout", space["dropout"]),
        "learning_rate": hp.Float("learning_rate", low, high, sampling="log"),
        "weight_decay": hp.Choice("weight_decay", space["weight_decay"]),
    }


def solved_heads(train: Records, evaluation: Records, breeds: int, space: dict) -> Iterator[Trial]:
    """Yield a finished trial for each logistic regression of the search space.

    Those for the same blocks are solved together; each has an equal share of the seconds.

    Args:
        train: Photos that the heads are fitted to.
        evaluation: Photos that the heads are scored on.
        breeds: Number of classes.
        space: Search space: `pipeline.settings.TunerSettings` as a dictionary.
    """
    for blocks in space["blocks"]:
        started = time.monotonic()
        used = used_columns(train.embedding_sizes, blocks)
        all_photos = np.ones(len(train.labels), bool)
        problems = [logistic_regression.Problem(all_photos, penalty) for penalty in space["l2"]]
        solutions = logistic_regression.solve(train.embeddings[:, :used], train.labels, breeds, problems)
        seconds = (time.monotonic() - started) / len(problems)
        for problem, solution in zip(problems, solutions, strict=True):
            probabilities = solution.probabilities(evaluation.embeddings[:, :used])
            scores = eval_metrics(evaluation.labels, probabilities)
            hp = kt.HyperParameters()
            hp.Fixed("kind", "logistic_regression")
            hp.Fixed("blocks", blocks)
            hp.Fixed("l2", problem.penalty)
            trial = Trial(hp, f"{blocks}-{problem.penalty:g}", TrialStatus.COMPLETED)
            trial.score = scores[space["objective"]]
            for name, value in scores.items():
                trial.metrics.update(name, value)
            trial.hyperparameters.values[TRIAL_SECONDS] = seconds
            yield trial


class HeadHyperModel(kt.HyperModel):
    """Hypermodel of the networks. Trials with the same `units` and `blocks` reuse one network, traced only once.

    Args:
        embedding_sizes: See `pipeline.modules.head.Records`.
        breeds: Number of classes.
        space: Search space: `pipeline.settings.TunerSettings` as a dictionary.
        batch_size: Photos per training step.
    """

    def __init__(self, embedding_sizes: dict[str, int], breeds: int, space: dict, batch_size: int):
        super().__init__()
        self._embedding_sizes, self._breeds, self._space = embedding_sizes, breeds, space
        self._batch_size = batch_size
        self._heads: dict[tuple[int, str], ReusableHead] = {}

    def build(self, hp: kt.HyperParameters) -> keras.Model:
        """Return the untrained head of a trial."""
        hyperparameters = sample_hyperparameters(hp, self._space)
        shape = hyperparameters["units"], hyperparameters["blocks"]
        if shape not in self._heads:
            self._heads[shape] = ReusableHead(self._embedding_sizes, self._breeds, hyperparameters, self._batch_size)
        return self._heads[shape].reset(hyperparameters)


class TrialError(FatalError):
    """One or more trials failed. The message gives their hyperparameters and the cause."""


class HeadSearch(kt.Hyperband):
    """Solve the logistic regressions and search the networks with Hyperband; all are trials of one search.

    The search records the duration of each trial in seconds and reports progress.

    Args:
        hypermodel: Networks.
        solve: Function that yields the finished trials of the logistic regressions.
        space: Search space: `pipeline.settings.TunerSettings` as a dictionary.
        **kwargs: Arguments of `kt.Hyperband`.
    """

    def __init__(self, hypermodel: kt.HyperModel, solve: Callable[[], Iterable[Trial]], space: dict, **kwargs):
        super().__init__(hypermodel, **kwargs)
        self._solve, self._kinds = solve, space["kinds"]
        solved = len(space["blocks"]) * len(space["l2"]) if "logistic_regression" in self._kinds else 0
        networks = _number_of_trials(self.oracle) if "network" in self._kinds else 0
        self._counter = progress.Counter("trials", solved + networks)
        self._seconds, self._histories = {}, {}
        # TFX requests the best `max_trials` trials; Hyperband sets it to None.
        self.oracle.max_trials = solved + networks

    def run_trial(self, trial, *args, **kwargs):
        """Run one trial and record its duration and its learning curve.

        Raises:
            TrialError: If the trial fails. The search ends; Keras Tuner would continue and hide the cause.
        """
        started = time.monotonic()
        try:
            result = (history,) = super().run_trial(trial, *args, **kwargs)
        except Exception as error:
            raise TrialError(f"{_describe_trial(trial)} failed: {type(error).__name__}: {error}") from error
        self._seconds[trial.trial_id] = time.monotonic() - started
        self._histories[trial.trial_id] = history.history
        self._counter.add()
        return result

    def search(self, *args, **kwargs):
        """Run all trials.

        Raises:
            TrialError: If a trial fails, or if the objective of three consecutive networks or of all networks is NaN.
        """
        with ThreadPoolExecutor(1) as pool:
            solved = pool.submit(self._solve_heads)
            if "network" in self._kinds:
                self._search_networks(*args, **kwargs)
        # Added last, because Hyperband counts the trials of its brackets.
        self.oracle.trials.update({trial.trial_id: trial for trial in solved.result()})

    def _solve_heads(self) -> list[Trial]:
        """Return the trials of the logistic regressions.

        They use one core, as do the networks. Gain of both at once: "both kinds at once" of
        `benchmarks/optimizations.py`.
        """
        solved = []
        if "logistic_regression" in self._kinds:
            for trial in self._solve():
                solved.append(trial)
                self._counter.add()
        return solved

    def _search_networks(self, *args, **kwargs):
        """Run Hyperband, then add the seconds of each trial to its hyperparameters, which TFX writes to its results.

        The seconds are added last because Hyperband identifies trials by their hyperparameters.
        """
        # Keras Tuner collects garbage twice per trial. Frozen objects, such as the modules of TensorFlow and TFX, are
        # skipped. Gain: "frozen search" of benchmarks/optimizations.py, in processes that are not frozen already.
        gc.collect()
        gc.freeze()
        try:
            super().search(*args, **kwargs)
        except RuntimeError as error:
            self._raise_if_failed(error)
            raise
        finally:
            gc.unfreeze()
        if not any(trial.status == TrialStatus.COMPLETED for trial in self.oracle.trials.values()):
            self._raise_if_failed(None)
        for trial_id, trial in self.oracle.trials.items():
            trial.hyperparameters.values[TRIAL_SECONDS] = self._seconds[trial_id]

    def write_event_files(self, folder: str, candidate: str) -> None:
        """Write an event file of each completed trial to a sub-folder of `folder`, after the search.

        Args:
            folder: Local folder.
            candidate: Name of the candidate whose heads were searched.
        """
        for trial in self.oracle.get_best_trials(self.oracle.max_trials):
            values, history = trial.hyperparameters.values, self._histories.get(trial.trial_id)
            hyperparameters = {"candidate": candidate, **hyperparameters_of(trial.hyperparameters)}
            metrics = {name: trial.metrics.get_last_value(name) for name in ("val_loss", "val_accuracy")}
            if history:
                hyperparameters["epochs"] = values[TRIAL_EPOCHS]
            write_head(
                os.path.join(folder, f"{values['kind']}-{trial.trial_id}"),
                hyperparameters,
                metrics | {"seconds": values[TRIAL_SECONDS]},
                # One file for each trial, because clusters copy each file of an artifact separately.
                {"": learning_curves(history)["validation"]} if history else {},
                first_epoch=values.get(TRIAL_INITIAL_EPOCH, 0) + 1,
            )

    def _raise_if_failed(self, cause: Exception | None) -> None:
        """Raise a TrialError if the objective of any trial is NaN; Keras Tuner reports only the number of trials."""
        failed = [trial for trial in self.oracle.trials.values() if trial.status == TrialStatus.FAILED]
        if failed:
            trials = ", ".join(map(_describe_trial, failed[-3:]))
            raise TrialError(
                f"{self.oracle.objective.name} is not a number at the end of {trials}: training diverged. "
                "Lower the upper bound of tuner.learning_rate; if that does not help, "
                f"{_INSPECT_EMBEDDINGS}"
            ) from cause


def _describe_trial(trial: Trial) -> str:
    values = hyperparameters_of(trial.hyperparameters)
    described = (f"{name}={value if isinstance(value, str) else f'{value:g}'}" for name, value in values.items())
    return f"trial {trial.trial_id} ({', '.join(described)})"


def _number_of_trials(oracle: HyperbandOracle) -> int:
    """Number of trials of a complete search, summed over all rounds of all brackets."""
    brackets = oracle._get_num_brackets()
    return sum(oracle._get_size(b, r) for b in range(brackets) for r in range(oracle._get_num_rounds(b)))
