"""Client for a Kubeflow Pipelines server.

It uses the generated API `kfp_server_api` directly instead of `kfp.Client`, which retries a rejected token for half a
minute, prints messages, treats a login page as an empty response, and writes a file to the home directory.
"""

import http
import json
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kfp_server_api as api
import urllib3.exceptions

from pipeline.runners.kubeflow.argo_workflow import Workflow, WorkflowError, read_workflow
from pipeline.runners.kubeflow.compiled_spec import CompiledSpec
from serving import kubectl_configuration, proxies
from serving.kubectl_configuration import ANONYMOUS, ConfigurationError

SERVER_NAMESPACE = "kubeflow"  # Kubernetes namespace of the Kubeflow Pipelines server
PORT_FORWARD = f"kubectl port-forward -n {SERVER_NAMESPACE} svc/ml-pipeline-ui 8080:80"
FORWARDED_HOST = "http://localhost:8080"
SCHEDULED_TIME = "[[ScheduledTime]]"  # Pusher replaces it, because Kubeflow Pipelines 2 does not
_TIMEOUTS = (10, 60)  # seconds to connect, and to wait for the response
_PAGE_SIZE = 100


class KubeflowError(RuntimeError):
    """The server cannot be reached or rejects a request; the message gives the reason and the remedy."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status  # HTTP status, or None if there was no response


@dataclass(frozen=True)
class Access:
    """Address of the server and credentials. Without a host, both come from the kubeconfig file.

    Attributes:
        host: Address of the UI or the API.
        token: Bearer token.
        cookie: Cookie of a signed-in browser session, as `name=value`.
        ca_cert: File of CA certificates that replace the public ones.
        context: Context in the kubeconfig file; None for the current context.
        namespace: Namespace of the user, on a multi-user server.
        ui: Address of the UI, if it differs from `host`.
    """

    host: str | None = None
    token: str | None = None
    cookie: str | None = None
    ca_cert: Path | None = None
    context: str | None = None
    namespace: str | None = None
    ui: str | None = None


class _InvalidResponse(Exception):
    """A response that is not a JSON object; the message is the predicate of a sentence about the server."""


class _ApiClient(api.ApiClient):
    """API client that rejects invalid JSON; the generated client treats it as an empty response or crashes."""

    def deserialize(self, response: Any, response_type: Any) -> Any:
        text = response.data.strip()
        if not text.startswith("{"):
            raise _InvalidResponse(
                "returned a web page, probably its login page, instead of a response of the Kubeflow Pipelines API: "
                "pass --token or --cookie; behind the Kubeflow dashboard, the address ends in /pipeline"
            )
        try:
            json.loads(text)
        except ValueError as error:
            raise _InvalidResponse(f"returned invalid JSON ({len(text):,} characters received): {error}") from None
        try:
            return super().deserialize(response, response_type)
        except (ValueError, TypeError, AttributeError) as error:
            raise _InvalidResponse(f"returned JSON that is not a response of Kubeflow Pipelines 2: {error}") from None


class KubeflowClient:
    """Connection to a Kubeflow Pipelines server.

    Raises:
        KubeflowError: If the server cannot be reached or rejects a request. Every method can raise it.
    """

    def __init__(self, access: Access):
        configuration = _create_configuration(access)
        self._host, self._uses_kubeconfig = configuration.host, not access.host
        has_kubectl_login = self._uses_kubeconfig and not access.token
        self._sign_in = "sign in to the cluster again" if has_kubectl_login else "pass a new --token or --cookie"
        self._ui = (access.ui or access.host or FORWARDED_HOST).split("#")[0].rstrip("/")
        self._namespace = access.namespace
        self._proxy_note = proxies.through(configuration.host)
        self._client = _ApiClient(configuration, cookie=access.cookie)
        self._pipelines, self._uploads = (
            api.PipelineServiceApi(self._client),
            api.PipelineUploadServiceApi(self._client),
        )
        self._experiments, self._runs = api.ExperimentServiceApi(self._client), api.RunServiceApi(self._client)
        self._schedules = api.RecurringRunServiceApi(self._client)
        is_multi_user = self._is_multi_user()
        if is_multi_user and not self._namespace:
            raise KubeflowError(
                f"{self._host} is a multi-user server: pass --namespace, the namespace of your Kubeflow profile"
            )
        if self._namespace and not is_multi_user:
            raise KubeflowError(
                f"{self._host} is a single-user server without namespace {self._namespace!r}: remove --namespace"
            )

    @property
    def namespace(self) -> str:
        """Kubernetes namespace of the pods of runs."""
        return self._namespace or SERVER_NAMESPACE

    def link(self, kind: str, identity: str) -> str:
        """URL of a run or schedule in the UI; `kind` is "runs" or "recurringrun"."""
        return f"{self._ui}/#/{kind}/details/{identity}"

    def find_pipeline(self, name: str) -> str | None:
        """ID of the pipeline with this name, or None."""
        pipelines = self._find_by_name(
            self._pipelines.pipeline_service_list_pipelines, "pipelines", name, **self._namespace_filter()
        )
        return pipelines[0].pipeline_id if pipelines else None

    def ensure_version(self, spec: CompiledSpec) -> tuple[str, str, bool]:
        """Upload a compiled pipeline, unless the server already has it.

        Returns:
            ID of the pipeline, ID of the version, and whether the version is new.
        """
        pipeline_id = self.find_pipeline(spec.name) or self._create_pipeline(spec.name)
        versions = self._find_by_name(
            self._pipelines.pipeline_service_list_pipeline_versions,
            "pipeline_versions",
            spec.version,
            pipeline_id=pipeline_id,
        )
        if versions:
            return pipeline_id, versions[0].pipeline_version_id, False
        version = self._call(
            self._uploads.upload_pipeline_version, uploadfile=str(spec.path), name=spec.version, pipelineid=pipeline_id
        )
        return pipeline_id, version.pipeline_version_id, True

    def _create_pipeline(self, name: str) -> str:
        # Uploading the specification would also create the pipeline, but name the first version after it.
        pipeline = api.V2beta1Pipeline(display_name=name, name=name, **self._namespace_filter())
        return self._call(self._pipelines.pipeline_service_create_pipeline, pipeline=pipeline).pipeline_id

    def find_experiment(self, name: str, create: bool) -> str:
        """ID of the experiment with this name; `create` creates a missing one."""
        list_page = self._experiments.experiment_service_list_experiments
        experiments = self._find_by_name(list_page, "experiments", name, **self._namespace_filter())
        if experiments and experiments[0].storage_state == api.V2beta1ExperimentStorageState.ARCHIVED:
            raise KubeflowError(
                f"experiment {name!r} is archived: restore it in the UI, or choose another --experiment"
            )
        if experiments:
            return experiments[0].experiment_id
        if not create:
            available = ", ".join(
                repr(e.display_name) for e in self._list_all(list_page, "experiments", **self._namespace_filter())
            )
            raise KubeflowError(f"no experiment {name!r}; available: {available or 'none'}")
        experiment = api.V2beta1Experiment(display_name=name, **self._namespace_filter())
        return self._call(self._experiments.experiment_service_create_experiment, experiment=experiment).experiment_id

    def start_run(
        self,
        name: str,
        experiment_id: str,
        version: tuple[str, str],
        parameters: dict[str, Any],
        pipeline_root: str | None,
    ) -> str:
        """Start a run of a pipeline version.

        Args:
            name: Name of the run.
            experiment_id: ID of the experiment.
            version: IDs of the pipeline and the version.
            parameters: Parameters that differ from the defaults.
            pipeline_root: URI for the artifacts; None for the server's default.

        Returns:
            ID of the run.
        """
        run = api.V2beta1Run(
            display_name=name,
            experiment_id=experiment_id,
            pipeline_version_reference=_version_reference(version),
            runtime_config=api.V2beta1RuntimeConfig(parameters=parameters, pipeline_root=pipeline_root),
        )
        return self._call(self._runs.run_service_create_run, run=run).run_id

    def get_run(self, run_id: str) -> api.V2beta1Run:
        """Current state of a run."""
        return self._call(self._runs.run_service_get_run, run_id=run_id)

    def get_workflow(self, run_id: str) -> Workflow:
        """Argo Workflow of a run.

        API v2beta1 does not decompress the status of large Workflows: once the status exceeds 1 MiB, the tasks in its
        runs no longer change. The Workflow itself is available only in API v1beta1.
        """
        response = self._call(
            self._client.call_api,
            resource_path=f"/apis/v1beta1/runs/{run_id}",
            method="GET",
            response_type="object",
            auth_settings=["Bearer"],
            _return_http_data_only=True,
        )
        runtime = response.get("pipeline_runtime")
        manifest = runtime.get("workflow_manifest") if isinstance(runtime, dict) else None
        if not manifest:
            raise KubeflowError(f"{self._host}: run {run_id}: the server returned no Workflow")
        try:
            return read_workflow(manifest)
        except WorkflowError as error:
            raise KubeflowError(f"{self._host}: run {run_id}: {error}") from None

    def list_schedules(self, experiment_id: str, name: str | None = None) -> list[api.V2beta1RecurringRun]:
        """Schedules in an experiment: all, or those with this name."""
        list_page = self._schedules.recurring_run_service_list_recurring_runs
        schedules = self._list_all(list_page, "recurring_runs", experiment_id=experiment_id)
        return [schedule for schedule in schedules if name in (None, schedule.display_name)]

    def replace_schedule(
        self,
        name: str,
        experiment_id: str,
        version: tuple[str, str],
        parameters: dict[str, Any],
        pipeline_root: str | None,
        cron: str,
        enabled: bool,
    ) -> str:
        """Create a schedule and delete the others with the same name.

        The server cannot change a schedule. The new one stays paused until the others are deleted, so that no two are
        active at the same time. After an interruption, call this again.

        Args:
            name, experiment_id, version, parameters, pipeline_root: Same as for `start_run`.
            cron: Cron expression with six fields, seconds first.
            enabled: Whether the schedule is active at the end.

        Returns:
            ID of the schedule.
        """
        schedule = api.V2beta1RecurringRun(
            display_name=name,
            experiment_id=experiment_id,
            pipeline_version_reference=_version_reference(version),
            runtime_config=api.V2beta1RuntimeConfig(parameters=parameters, pipeline_root=pipeline_root),
            trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=cron)),
            max_concurrency="1",
            no_catchup=True,
            mode=api.RecurringRunMode.DISABLE,
        )
        created = self._call(self._schedules.recurring_run_service_create_recurring_run, recurring_run=schedule)
        for other in self.list_schedules(experiment_id, name):
            if other.recurring_run_id != created.recurring_run_id:
                self.delete_schedule(other.recurring_run_id)
        if enabled:
            self.resume_schedule(created.recurring_run_id)
        return created.recurring_run_id

    def pause_schedule(self, schedule_id: str) -> None:
        """Pause a schedule."""
        self._call(self._schedules.recurring_run_service_disable_recurring_run, recurring_run_id=schedule_id)

    def resume_schedule(self, schedule_id: str) -> None:
        """Resume a paused schedule."""
        self._call(self._schedules.recurring_run_service_enable_recurring_run, recurring_run_id=schedule_id)

    def delete_schedule(self, schedule_id: str) -> None:
        """Delete a schedule, if it exists."""
        try:
            self._call(self._schedules.recurring_run_service_delete_recurring_run, recurring_run_id=schedule_id)
        except KubeflowError as error:
            if error.status != http.HTTPStatus.NOT_FOUND:
                raise

    def _is_multi_user(self) -> bool:
        try:
            return bool(self._call(api.HealthzServiceApi(self._client).healthz_service_get_healthz).multi_user)
        except KubeflowError as error:
            if error.status != http.HTTPStatus.NOT_FOUND:
                raise
            reason = (
                "the server is older or another service; behind the Kubeflow dashboard, the address ends in /pipeline"
            )
            if self._uses_kubeconfig:
                reason = (
                    f"the server is older or not in namespace {SERVER_NAMESPACE}; for another, forward a port "
                    "and pass --host"
                )
            raise KubeflowError(f"no API of Kubeflow Pipelines 2: {reason}. {error}") from None

    def _namespace_filter(self) -> dict[str, str]:
        return {"namespace": self._namespace} if self._namespace else {}

    def _find_by_name(self, list_page: Callable, field: str, name: str, **arguments: Any) -> list[Any]:
        predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
        # The server unescapes a filter twice, other arguments once.
        quoted = urllib.parse.quote(json.dumps({"predicates": [predicate]}))
        return list(self._list_all(list_page, field, filter=quoted, **arguments))

    def _list_all(self, list_page: Callable, field: str, **arguments: Any) -> Iterator[Any]:
        token = ""
        while True:
            page = self._call(list_page, page_size=_PAGE_SIZE, page_token=token, **arguments)
            yield from getattr(page, field) or ()
            if not (token := page.next_page_token):
                return

    def _call(self, function: Callable, **arguments: Any) -> Any:
        try:
            return function(_request_timeout=_TIMEOUTS, **arguments)
        except api.ApiException as error:
            raise KubeflowError(self._rejection_message(error), error.status) from None
        except urllib3.exceptions.HTTPError as error:
            raise KubeflowError(self._connection_message(getattr(error, "reason", None) or error)) from None
        except _InvalidResponse as error:
            raise KubeflowError(f"{self._host}{self._proxy_note} {error}") from None
        except (UnicodeDecodeError, LookupError) as error:
            raise KubeflowError(
                f"{self._host}{self._proxy_note} returned a response that is not text: {error}; try again"
            ) from None

    def _connection_message(self, reason: object) -> str:
        if isinstance(reason, urllib3.exceptions.SSLError):
            return (
                f"{self._host}: no TLS connection{self._proxy_note}: {reason}; to trust the certificates in FILE, pass "
                "--ca-cert FILE; if the server does not use TLS, start the address with http://"
            )
        return f"no response from {self._host}{self._proxy_note}: {reason}; check the port forwarding: {PORT_FORWARD}"

    def _rejection_message(self, error: api.ApiException) -> str:
        reason = _server_message(error)
        match error.status:
            case http.HTTPStatus.UNAUTHORIZED:
                problem = f"rejects your credentials: {self._sign_in}"
            case http.HTTPStatus.FORBIDDEN if ANONYMOUS in reason:
                problem = f"rejects your credentials: {self._sign_in}"
            case http.HTTPStatus.FORBIDDEN if self._namespace:
                problem = f"denies access to namespace {self._namespace!r}: check that it is yours"
            case http.HTTPStatus.FORBIDDEN:
                problem = "denies access: the account of the token lacks the permission"
            case _:
                problem = "rejects the request"
        return f"{self._host}{self._proxy_note} {problem} ({error.status}: {reason})"


def _create_configuration(access: Access) -> api.Configuration:
    configuration = api.Configuration()
    if access.host:
        if not access.host.startswith(("http://", "https://")):
            raise KubeflowError(f"--host {access.host}: write http://{access.host} or https://{access.host}")
        # An address copied from the browser has a #/... suffix.
        configuration.host = access.host.split("#")[0].rstrip("/")
    else:
        _read_kubeconfig(configuration, access.context)
    try:
        proxy = proxies.find(configuration.host)
    except proxies.ProxyError as error:
        raise KubeflowError(str(error)) from None
    if proxy:
        configuration.proxy, configuration.proxy_headers = proxy.url, proxy.headers
    if access.ca_cert:
        configuration.ssl_ca_cert = str(access.ca_cert)
    if access.token:
        configuration.api_key["authorization"] = f"Bearer {access.token}"
        configuration.refresh_api_key_hook = None
    return configuration


def _read_kubeconfig(configuration: api.Configuration, context: str | None) -> None:
    from kubernetes.client import Configuration

    # A separate object, because each renewal of a token resets the host.
    kube = Configuration()
    try:
        kubectl_configuration.load(kube, context)
    except ConfigurationError as error:
        raise KubeflowError(
            f"no Kubeflow Pipelines server: pass --host, or set KF_PIPELINES_ENDPOINT or KUBECONFIG ({error}). "
            f"For a server in a cluster: {PORT_FORWARD}, then --host {FORWARDED_HOST}"
        ) from None
    for name in ("verify_ssl", "ssl_ca_cert", "cert_file", "key_file"):
        setattr(configuration, name, getattr(kube, name))
    configuration.host = f"{kube.host}/api/v1/namespaces/{SERVER_NAMESPACE}/services/ml-pipeline:http/proxy"

    def renew(configuration: api.Configuration) -> None:
        if token := kube.get_api_key_with_prefix("authorization"):
            configuration.api_key["authorization"] = token

    renew(configuration)
    configuration.refresh_api_key_hook = renew


def _version_reference(version: tuple[str, str]) -> api.V2beta1PipelineVersionReference:
    pipeline_id, version_id = version
    return api.V2beta1PipelineVersionReference(pipeline_id=pipeline_id, pipeline_version_id=version_id)


def _server_message(error: api.ApiException) -> str:
    """First line of the server's error message; the other lines are its call stack."""
    try:
        body = json.loads(error.body)
        # Errors of uploads have the last key.
        message = body.get("message") or body.get("error") or body.get("error_message") or ""
    except (ValueError, TypeError, AttributeError):
        message = ""
    return str(message).strip().partition("\n")[0] or error.reason
