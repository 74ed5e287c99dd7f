"""Event files of heads for TensorBoard: their hyperparameters, their results on eval, and the learning curves."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence

import tensorflow as tf
from google.protobuf.message import Message
from tensorboard.plugins.hparams import api as hp
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.summary import experiment_pb
from tensorboard.plugins.scalar.summary_v2 import scalar_pb

_TEXT, _NUMBER = api_pb2.DATA_TYPE_STRING, api_pb2.DATA_TYPE_FLOAT64
# Columns of TensorBoard's table of heads, which shows only five at first, those with `differs` before the others.
# TensorBoard reads the columns of one head for all heads, so they must not depend on the search space.
_HYPERPARAMETERS = [
    api_pb2.HParamInfo(name="candidate", type=_TEXT, differs=True),
    api_pb2.HParamInfo(name="kind", type=_TEXT, differs=True),
    api_pb2.HParamInfo(name="blocks", type=_TEXT, differs=True),
    api_pb2.HParamInfo(name="l2", type=_NUMBER, differs=True),
    api_pb2.HParamInfo(name="learning_rate", type=_NUMBER, differs=True),
    api_pb2.HParamInfo(name="units", type=_NUMBER),
    api_pb2.HParamInfo(name="dropout", type=_NUMBER),
    api_pb2.HParamInfo(name="weight_decay", type=_NUMBER),
    api_pb2.HParamInfo(name="epochs", type=_NUMBER),
]
_METRICS = ("val_loss", "val_accuracy", "seconds")

Curve = Mapping[str, Sequence[float]]  # tag -> value of each epoch


def write_head(
    folder: str,
    hyperparameters: Mapping[str, str | float],
    metrics: Mapping[str, float],
    curves: Mapping[str, Curve],
    first_epoch: int = 1,
) -> None:
    """Write the event files of a head. TensorBoard shows the path of the folder as the name of the head.

    Args:
        folder: Local folder.
        hyperparameters: Values of those of `_HYPERPARAMETERS` that the head has.
        metrics: Values of `_METRICS`.
        curves: Learning curves of a network by the name of their sub-folder, "" for `folder` itself.
        first_epoch: Number of the first epoch of the curves.
    """
    columns = experiment_pb(_HYPERPARAMETERS, [hp.Metric(name).as_proto() for name in _METRICS])
    # The default ID is a hash of the hyperparameters; TensorBoard would show it instead of the path.
    values = hp.hparams_pb(hyperparameters, trial_id="")
    with _event_file(folder):
        _write(0, columns, values, *(scalar_pb(name, metrics[name]) for name in _METRICS))
        _write_curve(curves.get("", {}), first_epoch)
    for name in curves.keys() - {""}:
        with _event_file(os.path.join(folder, name)):
            _write_curve(curves[name], first_epoch)


def learning_curves(history: Mapping[str, Sequence[float]] | None) -> dict[str, Curve]:
    """Return the curves of a network, with the names that Keras's TensorBoard callback uses; none for a solved head.

    Args:
        history: Values of loss, accuracy, val_loss and val_accuracy for each epoch, or None.
    """
    if history is None:
        return {}
    return {
        split: {f"epoch_{name}": history[prefix + name] for name in ("loss", "accuracy")}
        for split, prefix in (("train", ""), ("validation", "val_"))
    }


def _write_curve(curve: Curve, first_epoch: int) -> None:
    for epoch, values in enumerate(zip(*curve.values(), strict=True), first_epoch):
        _write(epoch, *map(scalar_pb, curve, values))


def _write(step: int, *summaries: Message) -> None:
    """Write all summaries of a step together, which is faster than one call of `tf.summary.scalar` for each."""
    # Protocol buffers are merged by joining their bytes.
    tf.summary.experimental.write_raw_pb(b"".join(summary.SerializeToString() for summary in summaries), step)


@contextlib.contextmanager
def _event_file(folder: str) -> Iterator[None]:
    """Write the summaries of the block to a new event file."""
    writer = tf.summary.create_file_writer(folder)
    with writer.as_default():
        yield
    writer.close()
