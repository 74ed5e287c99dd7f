"""Trainer module: fits the final head of one candidate with the best hyperparameters of the Tuner."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras_tuner as kt
import numpy as np
import tensorflow_transform as tft
from tfx.components.trainer.fn_args_utils import FnArgs

from components import progress
from components.digests import code_digest, json_digest
from components.file_names import OUT_OF_FOLD_FILE, TRAINING_FILE
from components.json_files import write_json, write_json_lines
from components.keras_config import keras
from components.local_copies import local_output
from pipeline.modules import logistic_regression
from pipeline.modules.candidate_model import CandidateModel
from pipeline.modules.cross_validation import FOLDS, out_of_fold_rows
from pipeline.modules.event_files import learning_curves, write_head
from pipeline.modules.explanation import Explainer
from pipeline.modules.head import (
    Records,
    ReusableHead,
    build_head,
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


class Fit(NamedTuple):
    """A fitted head.

    Attributes:
        head: The head.
        epochs: Number of epochs that give its weights: the best epoch, or 0 for a solved head.
        training: Contents of training.json without the seconds.
    """

    head: keras.Model
    epochs: int
    training: dict[str, Any]


def run_fn(fn_args: FnArgs) -> None:
    """Entry point of TFX's Trainer.

    `fn_args.custom_config` has the keys candidate, trainer, explain, seed and modules.
    """
    use_one_thread()
    config = fn_args.custom_config
    started = time.monotonic()
    transform = tft.TFTransformOutput(fn_args.transform_output)
    breeds = [name.decode() for name in transform.vocabulary_by_name(VOCABULARY)]
    hyperparameters = hyperparameters_of(kt.HyperParameters.from_config(fn_args.hyperparameters))
    check = functools.partial(require_memory, "Trainer", hyperparameters["blocks"], FOLDS * len(breeds))
    photos, splits = read_splits({"train": fn_args.train_files, "eval": fn_args.eval_files}, transform, check)
    train, evaluation = splits["train"], splits["eval"]
    settings, seed = config["trainer"], config["seed"]

    make_deterministic(seed)
    fit = fit_head(train, evaluation, len(breeds), hyperparameters, settings)
    training_seconds = time.monotonic() - started
    out_of_fold = out_of_fold_rows(
        photos,
        [split for split, records in splits.items() for _ in records.labels],
        breeds,
        refitter(train.embedding_sizes, len(breeds), hyperparameters, settings["batch_size"], fit.epochs, seed),
    )

    probabilities = fit.head(evaluation.embeddings, training=False).numpy()
    explainer = Explainer(
        train.embeddings,
        train.labels,
        evaluation.embeddings,
        evaluation.labels,
        probabilities,
        config["explain"]["level"],
    )
    record = {
        "embedding_sizes": train.embedding_sizes,
        "breeds": breeds,
        "hyperparameters": hyperparameters,
        "data_digest": json_digest([train.digest(), evaluation.digest()]),
        "code_digest": code_digest(*config["modules"]),
        "settings": {"trainer": settings, "explain": config["explain"], "seed": seed},
        "explain": explainer.record,
        "parameters": fit.head.count_params(),
    }
    model = CandidateModel(transform, fit.head, train.embedding_sizes, breeds, explainer)
    model.save(fn_args.serving_model_dir, record)
    with local_output(fn_args.model_run_dir) as folder:
        write_json(folder, TRAINING_FILE, {"seconds": training_seconds, **fit.training})
        write_json_lines(folder, OUT_OF_FOLD_FILE, out_of_fold)
        write_head(
            folder,
            {"candidate": config["candidate"], **hyperparameters},
            eval_metrics(evaluation.labels, probabilities) | {"seconds": training_seconds},
            learning_curves(fit.training["history"]),
        )


def fit_head(
    train: Records, evaluation: Records, breeds: int, hyperparameters: dict[str, Any], settings: dict[str, Any]
) -> Fit:
    """Fit a head on train. A network is trained until the loss on eval stops improving.

    Args:
        train: Photos of train.
        evaluation: Photos of eval.
        breeds: Number of breeds.
        hyperparameters: See `pipeline.modules.head.build_head`.
        settings: `pipeline.settings.TrainerSettings` as a dictionary.
    """
    if hyperparameters["kind"] == "logistic_regression":
        ((head, iterations),) = _solve_heads(train, [np.ones(len(train.labels), bool)], breeds, hyperparameters)
        return Fit(head, 0, {"epochs": 0, "best_epoch": 0, "iterations": iterations, "history": None})
    head = build_head(train.embedding_sizes, breeds, hyperparameters, settings["batch_size"])
    history = head.fit(
        one_element_dataset(train),
        validation_data=one_element_dataset(evaluation),
        epochs=settings["epochs"],
        verbose=0,
        callbacks=[
            # Restores the weights of the best epoch even if training was not stopped early.
            keras.callbacks.EarlyStopping("val_loss", patience=settings["patience"], restore_best_weights=True),
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, _: progress.report("epochs", epoch + 1, settings["epochs"])
            ),
        ],
    ).history
    best_epoch = int(np.argmin(np.nan_to_num(history["val_loss"], nan=np.inf))) + 1
    return Fit(head, best_epoch, {"epochs": len(history["loss"]), "best_epoch": best_epoch, "history": history})


def refitter(
    embedding_sizes: dict[str, int],
    breeds: int,
    hyperparameters: dict[str, Any],
    batch_size: int,
    epochs: int,
    seed: int,
) -> Callable[[Records, Sequence[np.ndarray]], Iterator[keras.Model]]:
    """Return a function that fits heads on parts of the photos, in the way that `fit_head` fitted its head.

    Its arguments are the photos, and for each head whether it is fitted to a photo, bool [n]. The networks that it
    yields are the same object with new weights: use each one before the next one.

    Args:
        embedding_sizes: See `pipeline.modules.head.Records`.
        breeds: Number of breeds.
        hyperparameters: See `pipeline.modules.head.build_head`.
        batch_size: Photos per training step of a network.
        epochs: Number of epochs of a network: there is no split left for early stopping.
        seed: Seed of the training.
    """
    if hyperparameters["kind"] == "logistic_regression":
        return lambda records, parts: (head for head, _ in _solve_heads(records, parts, breeds, hyperparameters))
    make_deterministic(seed)
    network = ReusableHead(embedding_sizes, breeds, hyperparameters, batch_size)

    def train(records: Records, parts: Sequence[np.ndarray]) -> Iterator[keras.Model]:
        for part in parts:
            head = network.reset(hyperparameters)
            head.fit(one_element_dataset(records.subset(np.flatnonzero(part))), epochs=epochs, verbose=0)
            yield head

    return train


def _solve_heads(
    records: Records, parts: Sequence[np.ndarray], breeds: int, hyperparameters: dict[str, Any]
) -> Iterator[tuple[keras.Model, int]]:
    """Yield a linear head with the weights of the logistic regression of each part, and the iterations of the solver.

    Args:
        records: Photos.
        parts: For each head, whether it is fitted to a photo, bool [n].
        breeds: Number of breeds.
        hyperparameters: See `pipeline.modules.head.build_head`.
    """
    used = used_columns(records.embedding_sizes, hyperparameters["blocks"])
    problems = [logistic_regression.Problem(part, hyperparameters["l2"]) for part in parts]
    for solution in logistic_regression.solve(records.embeddings[:, :used], records.labels, breeds, problems):
        head = build_head(records.embedding_sizes, breeds, hyperparameters)
        head.set_weights([solution.kernel, solution.bias])
        yield head, solution.iterations
