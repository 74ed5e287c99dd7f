"""A Kubeflow Pipelines server: how to reach it, and what is asked of it.

It calls the server by its generated API. `kfp.Client` above that retries a refused token for half a minute, prints,
takes a login page for an empty answer, and keeps a file in the home directory.
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

INSTALLED_IN = "kubeflow"  # the Kubernetes namespace of Kubeflow Pipelines itself
PORT_FORWARD = f"kubectl port-forward -n {INSTALLED_IN} svc/ml-pipeline-ui 8080:80"
FORWARDED = "http://localhost:8080"
SCHEDULED_TIME = "[[ScheduledTime]]"  # Pusher replaces it; Kubeflow Pipelines 2 does not
_TIMEOUTS = (10, 60)  # seconds to connect, and to wait for an answer
_PAGE = 100


class KubeflowError(RuntimeError):
    """The server cannot be reached, or refuses; the message says why and what to do."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status  # HTTP's, where the server answered


@dataclass(frozen=True)
class Access:
    """Where the server is and who asks. Without a host, kubectl's configuration says both.

    Attributes:
        host: address of the UI or the API.
        token: bearer token.
        cookie: of a browser that is signed in, `name=value`.
        ca_cert: certificates to trust instead of the public ones.
        context: of kubectl's configuration; default: its current one.
        namespace: the user's, on a server for many users.
        ui: address of the UI, where it is not `host`.
    """

    host: str | None = None
    token: str | None = None
    cookie: str | None = None
    ca_cert: Path | None = None
    context: str | None = None
    namespace: str | None = None
    ui: str | None = None


class _NoDocument(Exception):
    """An answer that is no JSON object; the message goes on after the name of the server."""


class _ApiClient(api.ApiClient):
    """The generated client, which takes an answer that is no JSON for an empty one, and fails on one that is cut."""

    def deserialize(self, response: Any, response_type: Any) -> Any:
        text = response.data.strip()
        if not text.startswith("{"):
            raise _NoDocument(
                "answers with a web page, likely its login, instead of the API of Kubeflow Pipelines: "
                "sign in with --token or --cookie; behind Kubeflow's dashboard the address ends in /pipeline"
            )
        try:
            json.loads(text)
        except ValueError as error:
            raise _NoDocument(f"answers with damaged JSON, of which {len(text):,} characters came: {error}") from None
        try:
            return super().deserialize(response, response_type)
        except (ValueError, TypeError, AttributeError) as error:
            raise _NoDocument(f"answers with other JSON than Kubeflow Pipelines 2 does: {error}") from None


class Kubeflow:
    """A server that answered.

    Raises:
        KubeflowError: here and in each method.
    """

    def __init__(self, access: Access):
        configuration = _configuration(access)
        self._host, self._through_kubectl = configuration.host, not access.host
        by_kubectl = self._through_kubectl and not access.token
        self._sign_in = "sign in to the cluster again" if by_kubectl else "give a fresh --token or --cookie"
        self._ui = (access.ui or access.host or FORWARDED).split("#")[0].rstrip("/")
        self._namespace = access.namespace
        self._via = proxies.through(configuration.host)
        self._client = _ApiClient(configuration, cookie=access.cookie)
        self._pipelines, self._uploads = (
            api.PipelineServiceApi(self._client),
            api.PipelineUploadServiceApi(self._client),
        )
        self._experiments, self._runs = api.ExperimentServiceApi(self._client), api.RunServiceApi(self._client)
        self._schedules = api.RecurringRunServiceApi(self._client)
        many_users = self._serves_many_users()
        if many_users and not self._namespace:
            raise KubeflowError(
                f"{self._host} is for many users: say --namespace, the namespace of your Kubeflow profile"
            )
        if self._namespace and not many_users:
            raise KubeflowError(
                f"{self._host} is not for many users, it has no namespace {self._namespace!r}: leave --namespace out"
            )

    @property
    def namespace(self) -> str:
        """The namespace in which the pods of runs are."""
        return self._namespace or INSTALLED_IN

    def link(self, kind: str, identity: str) -> str:
        """Address of a page of the UI; `kind` is "runs" or "recurringrun"."""
        return f"{self._ui}/#/{kind}/details/{identity}"

    def pipeline(self, name: str) -> str | None:
        """Id of the pipeline of that name."""
        found = self._named(self._pipelines.pipeline_service_list_pipelines, "pipelines", name, **self._whose())
        return found[0].pipeline_id if found else None

    def version(self, spec: CompiledSpec) -> tuple[str, str, bool]:
        """The pipeline and version of `spec`, uploaded if the server does not have them.

        Returns:
            Id of the pipeline, id of the version, and whether the version is new.
        """
        pipeline_id = self.pipeline(spec.name) or self._made_pipeline(spec.name)
        versions = self._named(
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

    def _made_pipeline(self, name: str) -> str:
        # Not by uploading, which would name the first version after the pipeline.
        pipeline = api.V2beta1Pipeline(display_name=name, name=name, **self._whose())
        return self._call(self._pipelines.pipeline_service_create_pipeline, pipeline=pipeline).pipeline_id

    def experiment(self, name: str, make: bool) -> str:
        """Id of the experiment of that name; `make` makes it where there is none."""
        listing = self._experiments.experiment_service_list_experiments
        found = self._named(listing, "experiments", name, **self._whose())
        if found and found[0].storage_state == api.V2beta1ExperimentStorageState.ARCHIVED:
            raise KubeflowError(f"experiment {name!r} is archived: restore it in the UI, or take another --experiment")
        if found:
            return found[0].experiment_id
        if not make:
            there = ", ".join(repr(e.display_name) for e in self._all(listing, "experiments", **self._whose()))
            raise KubeflowError(f"there is no experiment {name!r}; there are: {there or 'none'}")
        experiment = api.V2beta1Experiment(display_name=name, **self._whose())
        return self._call(self._experiments.experiment_service_create_experiment, experiment=experiment).experiment_id

    def start(
        self,
        name: str,
        experiment_id: str,
        version: tuple[str, str],
        parameters: dict[str, Any],
        pipeline_root: str | None,
    ) -> str:
        """Starts a run of a version.

        Args:
            name: of the run.
            experiment_id: where it belongs.
            version: ids of pipeline and version.
            parameters: those that differ from the defaults.
            pipeline_root: where artifacts go; default: the server's.

        Returns:
            Id of the run.
        """
        run = api.V2beta1Run(
            display_name=name,
            experiment_id=experiment_id,
            pipeline_version_reference=_reference(version),
            runtime_config=api.V2beta1RuntimeConfig(parameters=parameters, pipeline_root=pipeline_root),
        )
        return self._call(self._runs.run_service_create_run, run=run).run_id

    def run(self, run_id: str) -> api.V2beta1Run:
        """A run as it stands."""
        return self._call(self._runs.run_service_get_run, run_id=run_id)

    def workflow(self, run_id: str) -> Workflow:
        """What Argo Workflows recorded of a run.

        API v2beta1 does not decompress the status of large Workflows: the tasks in its runs stay as they were when the
        status grew beyond 1 MiB. The Workflow itself is only in API v1beta1.
        """
        answer = self._call(
            self._client.call_api,
            resource_path=f"/apis/v1beta1/runs/{run_id}",
            method="GET",
            response_type="object",
            auth_settings=["Bearer"],
            _return_http_data_only=True,
        )
        runtime = answer.get("pipeline_runtime")
        manifest = runtime.get("workflow_manifest") if isinstance(runtime, dict) else None
        if not manifest:
            raise KubeflowError(f"{self._host}: run {run_id}: the server shows no Workflow of it")
        try:
            return read_workflow(manifest)
        except WorkflowError as error:
            raise KubeflowError(f"{self._host}: run {run_id}: {error}") from None

    def schedules(self, experiment_id: str, name: str | None = None) -> list[api.V2beta1RecurringRun]:
        """Schedules in an experiment, of one name or all."""
        listing = self._schedules.recurring_run_service_list_recurring_runs
        found = self._all(listing, "recurring_runs", experiment_id=experiment_id)
        return [schedule for schedule in found if name in (None, schedule.display_name)]

    def schedule(
        self,
        name: str,
        experiment_id: str,
        version: tuple[str, str],
        parameters: dict[str, Any],
        pipeline_root: str | None,
        cron: str,
        enabled: bool,
    ) -> str:
        """Makes a schedule, which replaces those of the same name.

        The server cannot change a schedule. The new one sleeps until the others are gone, so that never two are active;
        whoever is interrupted on the way runs it again.

        Args:
            name, experiment_id, version, parameters, pipeline_root: as in `start`.
            cron: six fields, seconds first.
            enabled: whether it is active at the end.

        Returns:
            Id of the schedule.
        """
        schedule = api.V2beta1RecurringRun(
            display_name=name,
            experiment_id=experiment_id,
            pipeline_version_reference=_reference(version),
            runtime_config=api.V2beta1RuntimeConfig(parameters=parameters, pipeline_root=pipeline_root),
            trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=cron)),
            max_concurrency="1",
            no_catchup=True,
            mode=api.RecurringRunMode.DISABLE,
        )
        made = self._call(self._schedules.recurring_run_service_create_recurring_run, recurring_run=schedule)
        for other in self.schedules(experiment_id, name):
            if other.recurring_run_id != made.recurring_run_id:
                self.delete(other.recurring_run_id)
        if enabled:
            self.resume(made.recurring_run_id)
        return made.recurring_run_id

    def pause(self, schedule_id: str) -> None:
        """Makes a schedule sleep."""
        self._call(self._schedules.recurring_run_service_disable_recurring_run, recurring_run_id=schedule_id)

    def resume(self, schedule_id: str) -> None:
        """Wakes a schedule."""
        self._call(self._schedules.recurring_run_service_enable_recurring_run, recurring_run_id=schedule_id)

    def delete(self, schedule_id: str) -> None:
        """Deletes a schedule; one that is gone already is no error."""
        try:
            self._call(self._schedules.recurring_run_service_delete_recurring_run, recurring_run_id=schedule_id)
        except KubeflowError as error:
            if error.status != http.HTTPStatus.NOT_FOUND:
                raise

    def _serves_many_users(self) -> bool:
        try:
            return bool(self._call(api.HealthzServiceApi(self._client).healthz_service_get_healthz).multi_user)
        except KubeflowError as error:
            if error.status != http.HTTPStatus.NOT_FOUND:
                raise
            why = "it is older, or another service; behind Kubeflow's dashboard the address ends in /pipeline"
            if self._through_kubectl:
                why = f"it is older, or not in namespace {INSTALLED_IN}: then forward a port and say --host"
            raise KubeflowError(f"no API of Kubeflow Pipelines 2: {why}. {error}") from None

    def _whose(self) -> dict[str, str]:
        return {"namespace": self._namespace} if self._namespace else {}

    def _named(self, listing: Callable, field: str, name: str, **arguments: Any) -> list[Any]:
        predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
        # The server unescapes a filter once more than other arguments.
        quoted = urllib.parse.quote(json.dumps({"predicates": [predicate]}))
        return list(self._all(listing, field, filter=quoted, **arguments))

    def _all(self, listing: Callable, field: str, **arguments: Any) -> Iterator[Any]:
        token = ""
        while True:
            page = self._call(listing, page_size=_PAGE, page_token=token, **arguments)
            yield from getattr(page, field) or ()
            if not (token := page.next_page_token):
                return

    def _call(self, function: Callable, **arguments: Any) -> Any:
        try:
            return function(_request_timeout=_TIMEOUTS, **arguments)
        except api.ApiException as error:
            raise KubeflowError(self._refusal(error), error.status) from None
        except urllib3.exceptions.HTTPError as error:
            raise KubeflowError(self._no_answer(getattr(error, "reason", None) or error)) from None
        except _NoDocument as error:
            raise KubeflowError(f"{self._host}{self._via} {error}") from None
        except (UnicodeDecodeError, LookupError) as error:
            raise KubeflowError(f"{self._host}{self._via} answers with what is no text: {error}; try again") from None

    def _no_answer(self, reason: object) -> str:
        if isinstance(reason, urllib3.exceptions.SSLError):
            return (
                f"{self._host}: no TLS connection{self._via}: {reason}; --ca-cert FILE trusts the certificates of "
                "FILE, and an address that serves no TLS begins with http://"
            )
        return f"nothing answers at {self._host}{self._via}: {reason}; is it forwarded? {PORT_FORWARD}"

    def _refusal(self, error: api.ApiException) -> str:
        said = _said(error)
        match error.status:
            case http.HTTPStatus.UNAUTHORIZED:
                what = f"does not know you: {self._sign_in}"
            case http.HTTPStatus.FORBIDDEN if ANONYMOUS in said:
                what = f"does not know you: {self._sign_in}"
            case http.HTTPStatus.FORBIDDEN if self._namespace:
                what = f"does not let you work in namespace {self._namespace!r}: is it yours?"
            case http.HTTPStatus.FORBIDDEN:
                what = "does not let you do this: the token's account lacks the right"
            case _:
                what = "refuses"
        return f"{self._host}{self._via} {what} ({error.status}: {said})"


def _configuration(access: Access) -> api.Configuration:
    configuration = api.Configuration()
    if access.host:
        if not access.host.startswith(("http://", "https://")):
            raise KubeflowError(f"--host {access.host}: write http://{access.host} or https://{access.host}")
        configuration.host = access.host.split("#")[0].rstrip("/")  # also as copied from the browser
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

    # Not into `configuration` itself: each renewal of a token would put the host back.
    kube = Configuration()
    try:
        kubectl_configuration.load(kube, context)
    except ConfigurationError as error:
        raise KubeflowError(
            f"no Kubeflow Pipelines to talk to: say --host, or set KF_PIPELINES_ENDPOINT, or KUBECONFIG ({error}). "
            f"To reach one in a cluster: {PORT_FORWARD}, then --host {FORWARDED}"
        ) from None
    for name in ("verify_ssl", "ssl_ca_cert", "cert_file", "key_file"):
        setattr(configuration, name, getattr(kube, name))
    configuration.host = f"{kube.host}/api/v1/namespaces/{INSTALLED_IN}/services/ml-pipeline:http/proxy"

    def renew(configuration: api.Configuration) -> None:
        if token := kube.get_api_key_with_prefix("authorization"):
            configuration.api_key["authorization"] = token

    renew(configuration)
    configuration.refresh_api_key_hook = renew


def _reference(version: tuple[str, str]) -> api.V2beta1PipelineVersionReference:
    pipeline_id, version_id = version
    return api.V2beta1PipelineVersionReference(pipeline_id=pipeline_id, pipeline_version_id=version_id)


def _said(error: api.ApiException) -> str:
    """The first line of what the server says; it adds its call stack."""
    try:
        body = json.loads(error.body)
        # The last is what uploads answer.
        said = body.get("message") or body.get("error") or body.get("error_message") or ""
    except (ValueError, TypeError, AttributeError):
        said = ""
    return str(said).strip().partition("\n")[0] or error.reason
