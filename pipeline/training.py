"""Trainer: the final head of one backbone, with the hyperparameters that the Tuner found, and the model to serve."""

import os
import statistics
import time

import keras
import keras_tuner as kt
import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
from tfx.components.trainer.fn_args_utils import FnArgs

from components import progress
from components.backbone import RECORD_FILE as BACKBONE_RECORD_FILE
from components.documents import read_json, write_json
from components.provenance import code_digest, json_digest
from components.training_records import TRAINING_FILE
from pipeline.head import build_head, make_deterministic, read_records
from pipeline.preprocessing import VOCABULARY
from pipeline.serving_model import ServingModel

_HYPERPARAMETERS = ("units", "dropout", "learning_rate", "weight_decay")
_LATENCY_CALLS = 15


def run_fn(fn_args: FnArgs) -> None:
    """Entry point of TFX's Trainer; settings in `custom_config`: trainer, seed, top_k, model_name, modules."""
    config = fn_args.custom_config
    started = time.monotonic()
    make_deterministic(config["seed"])
    transform = tft.TFTransformOutput(fn_args.transform_output)
    breeds = [name.decode() for name in transform.vocabulary_by_name(VOCABULARY)]
    train = read_records(fn_args.train_files, transform)
    evaluation = read_records(fn_args.eval_files, transform)
    found = kt.HyperParameters.from_config(fn_args.hyperparameters)
    hyperparameters = {name: found.get(name) for name in _HYPERPARAMETERS}

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
            # Ends with the weights of its best epoch, also when it was never stopped.
            keras.callbacks.EarlyStopping("val_loss", patience=settings["patience"], restore_best_weights=True),
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, _: progress.report("epochs", epoch + 1, settings["epochs"])
            ),
        ],
    ).history
    training_seconds = time.monotonic() - started

    backbone = read_json(fn_args.base_model, BACKBONE_RECORD_FILE)
    record = {
        "backbone": backbone,
        "breeds": breeds,
        "hyperparameters": hyperparameters,
        "data_digest": json_digest([train.digest(), evaluation.digest()]),
        "code_digest": code_digest(*config["modules"]),
        "settings": {"trainer": settings, "seed": config["seed"], "top_k": config["top_k"]},
        "parameters": backbone["parameters"] + head.count_params(),
    }
    # Two models with one recipe are one model: the gate calls that "nothing new".
    record["recipe_digest"] = json_digest(record)
    model = ServingModel(fn_args.base_model, transform, head, breeds, config["top_k"])
    model.save(fn_args.serving_model_dir, record, config["model_name"])
    write_json(
        fn_args.model_run_dir,
        TRAINING_FILE,
        {
            "seconds": training_seconds,
            "epochs": len(history["loss"]),
            "best_epoch": int(np.argmin(np.nan_to_num(history["val_loss"], nan=np.inf))) + 1,
            "history": history,
            "latency_ms_p50": _latency(model, backbone["image_size"]),
            "saved_model_bytes": _size(fn_args.serving_model_dir),
        },
    )


def _latency(model: ServingModel, image_size: int) -> float:
    """Median milliseconds of one photo of the backbone's own size through `serving_default`, after a first call."""
    noise = tf.cast(tf.random.stateless_uniform([image_size, image_size, 3], [0, 0], 0, 256, tf.int32), tf.uint8)
    photo = tf.io.encode_jpeg(noise)[tf.newaxis]
    serve = model.endpoints["serving_default"]
    seconds = []
    for _ in range(_LATENCY_CALLS + 1):
        started = time.perf_counter()
        serve(photo)
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[1:])


def _size(path: str) -> int:
    return sum(
        tf.io.gfile.stat(os.path.join(folder, name)).length
        for folder, _, names in tf.io.gfile.walk(path)
        for name in names
    )
