"""gRPC API of the model server: PredictionService, ModelService and the health service."""

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tests.serving.model_server.servers import DEADLINE, embedded_server_only, grpc_error, predict_request
from tests.serving.model_server.toys import jpeg

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def test_predict_returns_model_name_version_and_signature(server):
    spec = server.predict("toys", x=[1.0]).result().model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("toys", 7, "serving_default")


def test_predict_returns_values_in_typed_fields(server):
    y = server.predict("toys", x=[1.0, 2.5]).result().outputs["y"]
    assert list(y.float_val) == [8.0, 9.5]
    assert not y.tensor_content


def test_predict_runs_the_named_signature(server):
    response = server.predict("toys", _signature="weigh", points=[[1.0, 2.0]], weights=tf.constant([3], tf.int64))
    assert tf.make_ndarray(response.result().outputs["weighed"]).tolist() == [[3.0, 6.0]]


def test_predict_accepts_photo_bytes(server):
    outputs = server.predict("toys", _signature="measure", image_bytes=[jpeg(5), jpeg(9)]).result().outputs
    assert list(outputs["height"].int_val) == [5, 9]


def test_output_filter_omits_other_outputs(server):
    request = predict_request("toys", x=[1.0])
    request.output_filter.append("version")
    assert list(server.prediction.Predict(request, timeout=DEADLINE).outputs) == ["version"]


def test_unknown_output_is_an_invalid_argument(server):
    request = predict_request("toys", x=[1.0])
    request.output_filter.append("z")
    with grpc_error(INVALID, "output tensor alias not found in signature: z"):
        server.prediction.Predict(request, timeout=DEADLINE)


def test_unknown_model_is_not_found(server):
    with grpc_error(grpc.StatusCode.NOT_FOUND, "Servable not found for request: Latest(nobody)"):
        server.predict("nobody", x=[1.0]).result()


def test_unknown_version_is_not_found(server):
    with grpc_error(grpc.StatusCode.NOT_FOUND, "Servable not found for request: Specific(toys, 9)"):
        server.predict("toys", 9, x=[1.0]).result()


def test_unknown_label_is_an_invalid_argument(server):
    with grpc_error(INVALID, "Unrecognized servable version label: gold"):
        server.predict("toys", "gold", x=[1.0]).result()


def test_unknown_signature_is_a_failed_precondition(server):
    with grpc_error(grpc.StatusCode.FAILED_PRECONDITION, 'Serving signature key "fly" not found.'):
        server.predict("toys", _signature="fly", x=[1.0]).result()


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({}, "input size does not match signature: 0!=1"),
        ({"x": [1.0], "z": [1.0]}, "Sent extra: {z}. Missing but required: {}."),
        ({"z": [1.0]}, "input tensor alias not found in signature: z"),
        ({"x": ["one"]}, "Expects arg[0] to be float but string is provided"),
        ({"x": [1]}, "Expects arg[0] to be float but int32 is provided"),
    ],
)
def test_inputs_that_do_not_match_the_signature_are_invalid_arguments(server, inputs, text):
    with grpc_error(INVALID, text):
        server.predict("toys", **inputs).result()


def test_empty_batch_returns_empty_outputs(server):
    y = server.predict("toys", x=tf.zeros([0])).result().outputs["y"]
    assert tf.make_ndarray(y).shape == (0,)


def test_wrong_shape_returns_the_error_of_tensorflow(server):
    with grpc_error(INVALID, "{{node"):
        server.predict("toys", _signature="weigh", points=tf.ones([2, 3]), weights=tf.ones([5], tf.int64)).result()


def test_undecodable_photo_returns_the_error_of_tensorflow(server):
    with grpc_error(INVALID, "Unknown image file format."):
        server.predict("toys", _signature="measure", image_bytes=[jpeg(5), b"no photo"]).result()


def test_tensor_content_that_does_not_match_the_shape_is_an_invalid_argument(server):
    request = predict_request("toys", x=[1.0])
    request.inputs["x"].ClearField("float_val")
    request.inputs["x"].tensor_content = b"\0" * 7
    with grpc_error(INVALID, "tensor parsing error: x"):
        server.prediction.Predict(request, timeout=DEADLINE)


@embedded_server_only
def test_tensor_larger_than_memory_is_an_invalid_argument(server):
    request = predict_request("toys", x=[1.0])
    request.inputs["x"].tensor_shape.dim[0].size = 10**12
    with grpc_error(INVALID, "tensor parsing error: x"):
        server.prediction.Predict(request, timeout=DEADLINE)


def test_request_of_many_megabytes_is_accepted(server):
    y = server.predict("toys", x=tf.zeros([5_000_000])).result().outputs["y"]
    assert len(y.float_val) == 5_000_000


def test_request_without_a_model_is_an_invalid_argument(server):
    with grpc_error(INVALID, "Missing ModelSpec"):
        server.prediction.Predict(predict_pb2.PredictRequest(), timeout=DEADLINE)


def test_get_model_metadata_returns_the_signatures(server):
    response = server.metadata("toys")
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    assert response.model_spec.version.value == 7
    assert {"serving_default", "weigh", "measure"} <= signatures.signature_def.keys()
    assert signatures.signature_def["weigh"].inputs["weights"].dtype == tf.int64.as_datatype_enum


def test_unknown_metadata_field_is_an_invalid_argument(server):
    with grpc_error(INVALID, "Metadata field color is not supported"):
        server.metadata("toys", "color")


def test_get_model_metadata_of_an_unknown_model_is_not_found(server):
    with grpc_error(grpc.StatusCode.NOT_FOUND):
        server.metadata("nobody")


def test_get_model_status_returns_the_available_version(server):
    assert server.status("toys") == {7: ("AVAILABLE", 0, "")}


def test_get_model_status_can_select_a_version(server):
    assert server.status("toys", 7).keys() == {7}
    with grpc_error(grpc.StatusCode.NOT_FOUND, "Could not find version 9 of model toys"):
        server.status("toys", 9)


def test_get_model_status_of_an_unknown_model_is_not_found(server):
    with grpc_error(grpc.StatusCode.NOT_FOUND, "Could not find any versions of model nobody"):
        server.status("nobody")


def test_get_model_status_ignores_labels(server):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name, request.model_spec.version_label = "toys", "gold"
    assert server.models.GetModelStatus(request, timeout=DEADLINE).model_version_status


def test_configuration_without_a_model_list_is_an_invalid_argument(server):
    with grpc_error(INVALID, "Only ModelConfigList is currently supported"):
        server.models.HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest(), timeout=DEADLINE)


def test_model_listed_twice_is_an_invalid_argument(server, toys):
    request = model_management_pb2.ReloadConfigRequest()
    for _ in range(2):
        request.config.model_config_list.config.add(name="toys", base_path=str(toys), model_platform="tensorflow")
    with grpc_error(INVALID, "Illegal to list model toys multiple times in config list"):
        server.models.HandleReloadConfigRequest(request, timeout=DEADLINE)


def test_health_check_returns_serving(server):
    check = server.channel.unary_unary("/grpc.health.v1.Health/Check")
    assert check(b"", timeout=DEADLINE) == b"\x08\x01"


def test_health_check_of_an_unknown_service_is_not_found(server):
    with grpc_error(grpc.StatusCode.NOT_FOUND):
        server.channel.unary_unary("/grpc.health.v1.Health/Check")(b"\x0a\x01x", timeout=DEADLINE)


def test_unix_socket_serves_the_same_api_as_the_port(server):
    with grpc.insecure_channel(f"unix:{server.socket}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        response = stub.Predict(predict_request("toys", x=[1.0]), timeout=DEADLINE)
    assert list(response.outputs["y"].float_val) == [8.0]
