"""Trainer module: trains the final head of one backbone with the best hyperparameters of the Tuner."""

import time

import keras_tuner as kt
import numpy as np
import tensorflow_transform as tft
from tfx.components.trainer.fn_args_utils import FnArgs

from components import progress
from components.digests import code_digest, json_digest
from components.file_names import TRAINING_FILE
from components.json_files import write_json
from components.keras_config import keras
from pipeline.modules.candidate_model import CandidateModel
from pipeline.modules.head import build_head, make_deterministic, read_records
from pipeline.modules.preprocessing import VOCABULARY

_HYPERPARAMETERS = ("units", "dropout", "learning_rate", "weight_decay")


def run_fn(fn_args: FnArgs) -> None:
    """Entry point of TFX's Trainer. `fn_args.custom_config` has the keys trainer, seed and modules."""
    config = fn_args.custom_config
    started = time.monotonic()
    make_deterministic(config["seed"])
    transform = tft.TFTransformOutput(fn_args.transform_output)
    breeds = [name.decode() for name in transform.vocabulary_by_name(VOCABULARY)]
    train = read_records(fn_args.train_files, transform)
    evaluation = read_records(fn_args.eval_files, transform)
    tuned = kt.HyperParameters.from_config(fn_args.hyperparameters)
    hyperparameters = {name: tuned.get(name) for name in _HYPERPARAMETERS}

    head = build_head(train.embeddings.shape[1], len(breeds), hyperparameters)
    settings = config["trainer"]
    history = head.fit(
        train.embeddings,
        train.labels,
        validation_data=(evaluation.embeddings, evaluation.labels),
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        verbose=0,
        callbacks=[
            # Restores the weights of the best epoch even if training was not stopped early.
            keras.callbacks.EarlyStopping("val_loss", patience=settings["patience"], restore_best_weights=True),
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, _: progress.report("epochs", epoch + 1, settings["epochs"])
            ),
        ],
    ).history
    training_seconds = time.monotonic() - started

    record = {
        "embedding_sizes": train.embedding_sizes,
        "breeds": breeds,
        "hyperparameters": hyperparameters,
        "data_digest": json_digest([train.digest(), evaluation.digest()]),
        "code_digest": code_digest(*config["modules"]),
        "settings": {"trainer": settings, "seed": config["seed"]},
        "parameters": head.count_params(),
    }
    CandidateModel(transform, head, train.embedding_sizes, breeds).save(fn_args.serving_model_dir, record)
    write_json(
        fn_args.model_run_dir,
        TRAINING_FILE,
        {
            "seconds": training_seconds,
            "epochs": len(history["loss"]),
            "best_epoch": int(np.argmin(np.nan_to_num(history["val_loss"], nan=np.inf))) + 1,
            "history": history,
        },
    )
