"""Proxies: no client uses one for this machine; for other machines, all clients use that of the environment."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from serving import http_client, proxies
from serving.client import BadResponse, ClientError, RequestRejected, Unavailable
from serving.client.gateway import GatewayClient
from serving.client.grpc import AsyncGrpcClient, GrpcClient
from serving.client.rest import RestClient
from serving.rollout.canary_analysis import read_request_stats
from serving.rollout.fleet import Unreachable
from serving.rollout.model_server_client import ModelServerClient
from tests.running import catbreeds
from tests.serving.classifier import encoded, picture
from tests.serving.model_server.servers import free_port
from tests.serving.scripted_server import ScriptedServer

PHOTO = encoded(picture())
# RFC 2606 reserves .invalid, so this name never resolves.
REMOTE_HOST = "cats.invalid"


class Proxy(ThreadingHTTPServer):
    """A proxy that rejects all requests and records their targets."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.targets: list[str] = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.targets.append(self.path)
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.send_error(502, "blocked by the proxy")

    do_POST = do_CONNECT = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def environment(monkeypatch) -> Callable[..., None]:
    """Unset all proxy variables; return a function that sets some."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)

    def set_variables(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.fixture
def proxy(environment) -> Iterator[Proxy]:
    """A running proxy that the environment sets for all protocols."""
    proxy = Proxy()
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    environment(http_proxy=proxy.url, HTTPS_PROXY=proxy.url)
    yield proxy
    proxy.shutdown()
    proxy.server_close()


def predict_async(kind: type, address: str) -> None:
    async def predict() -> None:
        async with kind(address) as client:
            await client.predict(PHOTO)

    asyncio.run(predict())


def predict(kind: type, address: str) -> None:
    with kind(address) as client:
        client.predict(PHOTO)


def predict_with_asyncio(target: str) -> None:
    async def predict() -> None:
        async with AsyncGrpcClient(target) as client:
            await client.predict(PHOTO)

    asyncio.run(predict())


CLIENTS = {
    "gateway": lambda host: predict(GatewayClient, f"http://{host}"),
    "REST": lambda host: predict(RestClient, f"http://{host}"),
    "gRPC": lambda host: predict(GrpcClient, host),
    "gRPC, asyncio": lambda host: predict_async(AsyncGrpcClient, host),
}


@pytest.fixture(params=CLIENTS)
def client(request) -> Callable[[str], None]:
    return CLIENTS[request.param]


def test_requests_to_other_machines_use_the_proxy_and_errors_name_it(client, proxy):
    with pytest.raises((Unavailable, BadResponse), match=rf"through the proxy (http_proxy|HTTPS_PROXY)={proxy.url}\)"):
        client(f"{REMOTE_HOST}:8500")
    assert REMOTE_HOST in proxy.targets[0]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_requests_to_this_machine_bypass_the_proxy_and_errors_do_not_mention_it(client, proxy, host):
    with pytest.raises(Unavailable) as caught:
        client(f"{host}:{free_port()}")
    assert "proxy" not in str(caught.value)
    assert proxy.targets == []


def test_socks_proxy_is_rejected_with_its_variable_except_for_this_machine(client, environment):
    environment(ALL_PROXY="socks5://user:secret@127.0.0.1:1080")
    with pytest.raises(
        RequestRejected, match=rf"ALL_PROXY=socks5://127.0.0.1:1080: .* or add {REMOTE_HOST} to no_proxy"
    ) as caught:
        client(f"{REMOTE_HOST}:8500")
    assert "secret" not in str(caught.value)
    with pytest.raises(Unavailable):
        client(f"127.0.0.1:{free_port()}")


def test_rollout_reaches_servers_of_this_machine_without_a_proxy(proxy):
    server = ScriptedServer()
    server_responds = pytest.raises(Unreachable, match=r"^UNIMPLEMENTED: Method not found!$")
    with ModelServerClient(f"127.0.0.1:{server.port}", "catbreeds", timeout=30) as connection, server_responds:
        connection.version_states()
    server.stop()
    with pytest.raises(OSError, match="http://127") as caught:
        read_request_stats(f"127.0.0.1:{free_port()}")
    assert "proxy" not in str(caught.value)
    assert proxy.targets == []
    with ModelServerClient(f"{REMOTE_HOST}:1", "catbreeds") as connection, pytest.raises(Unreachable, match=proxy.url):
        connection.version_states()
    with pytest.raises(OSError, match=proxy.url):
        read_request_stats(f"{REMOTE_HOST}:1")


def test_redirect_to_this_machine_bypasses_the_proxy(environment):
    local, proxy = Proxy(), Proxy()
    proxy.RequestHandlerClass = type(
        "Redirecting",
        (Handler,),
        {
            "do_GET": lambda handler: (
                (handler.send_response(302), handler.send_header("Location", local.url)) and handler.end_headers()
            )
        },
    )
    for server in (local, proxy):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    environment(http_proxy=proxy.url)
    with http_client.client(follow_redirects=True) as client:
        assert client.get(f"http://{REMOTE_HOST}").status_code == 502
    assert local.targets == ["/"]
    for server in (local, proxy):
        server.shutdown()
        server.server_close()


THIS_MACHINE = [
    "localhost",
    "x.localhost",
    "127.0.0.1",
    "127.8.9.10",
    "127.1",
    "0.0.0.0",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
]


@pytest.mark.parametrize("host", THIS_MACHINE)
@pytest.mark.parametrize("form", ["http://{}", "http://{}:80/path", "https://{}", "{}:8500", "dns:///{}:8500"])
def test_every_address_of_this_machine_bypasses_the_proxy(environment, host, form):
    environment(http_proxy="http://p:1", https_proxy="http://p:1", grpc_proxy="http://p:1", all_proxy="http://p:1")
    assert proxies.find(form.format(host)) is None


@pytest.mark.parametrize(
    ("no_proxy", "address", "direct"),
    [
        ("*", "http://a.b", True),
        ("a.b", "http://a.b", True),
        ("a.b", "http://x.a.b:81/c", True),
        (".a.b", "https://x.a.b", True),
        ("a.b", "http://xa.b", False),
        ("*.a.b", "http://x.a.b", True),
        ("*.a.b", "http://xa.b", False),
        ("c.d *.a.b\tlast", "x.a.b:8500", True),
        ("a.b:81", "http://a.b:81", True),
        ("a.b:81", "http://a.b", False),
        (" x , 10.0.0.0/8", "http://10.1.2.3", True),
        ("10.0.0.0/8", "10.1.2.3:8500", True),
        ("10.0.0.0/8", "http://11.1.2.3", False),
        ("fd00::/8", "http://[fd00::1]:80", True),
        (".svc", "dns:///model-server.catbreeds.svc:8500", True),
        (".svc", "model-server:8500", False),
        ("", "ipv4:1.2.3.4:8500,1.2.3.5:8500", False),
        ("1.2.3.4", "ipv4:1.2.3.4:8500,1.2.3.5:8500", True),
        ("", "unix:/run/server", True),
    ],
)
@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
def test_hosts_in_no_proxy_bypass_the_proxy(environment, variable, no_proxy, address, direct):
    environment(**{variable: no_proxy, "http_proxy": "p:1", "HTTPS_PROXY": "p:1"})
    assert (proxies.find(address) is None) == direct


@pytest.mark.parametrize(
    ("variables", "address", "expected"),
    [
        ({"http_proxy": "http://a:1", "HTTP_PROXY": "http://b:2"}, "http://x", "http_proxy=http://a:1"),
        ({"http_proxy": "", "HTTP_PROXY": "http://b:2"}, "http://x", "None"),
        ({"HTTP_PROXY": "http://b:2"}, "https://x", "None"),
        ({"HTTP_PROXY": "http://b:2", "REQUEST_METHOD": "GET"}, "http://x", "None"),
        ({"all_proxy": "b:2"}, "https://x", "all_proxy=http://b:2"),
        ({"grpc_proxy": "b:2", "https_proxy": "a:1"}, "x:1", "grpc_proxy=http://b:2"),
        ({"http_proxy": "http://me:secret@b:2"}, "http://x", "http_proxy=http://b:2"),
    ],
)
def test_variables_have_the_documented_precedence(environment, variables, address, expected):
    environment(**variables)
    assert str(proxies.find(address)) == expected


@pytest.mark.parametrize(
    "value",
    [
        *("socks5h://p:1", "socks4://p", "ftp://p:1", "http://", "http://p:port", "http://[p"),
        *("a b", "http://p<1>:1", "http://p,q:1", "'http://p:1'"),
    ],
)
def test_unusable_proxy_is_rejected_with_its_variable(environment, value):
    environment(HTTPS_PROXY=value)
    with pytest.raises(proxies.ProxyError, match="set HTTPS_PROXY to the address of an HTTP proxy"):
        proxies.find("https://a.b")
    assert "HTTPS_PROXY" in proxies.through("https://a.b")


def test_libraries_that_read_the_environment_select_the_same_proxies(environment):
    environment(NO_PROXY="a.b", ALL_PROXY="http://p:1", HTTP_PROXY="http://q:2")
    with contextlib.ExitStack() as clients:
        proxies.apply_to_libraries()
        client = clients.enter_context(httpx.Client())
        # How httpx interprets the environment.
        uses_proxy = {
            url: client._transport_for_url(httpx.URL(url)) is not client._transport
            for url in ("http://c.d", "https://c.d", "https://a.b", "http://localhost:1", "http://127.0.0.1:1")
        }
    assert list(uses_proxy.values()) == [True, True, False, False, False]
    assert (os.environ["http_proxy"], os.environ["https_proxy"]) == ("http://q:2", "http://p:1")


@pytest.mark.parametrize("option", [("--gateway", "http://{}"), ("--rest", "http://{}"), ("--grpc", "{}")])
@pytest.mark.parametrize(
    ("host", "variables", "expected"),
    [
        ("127.0.0.1:{port}", {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}, None),
        (f"{REMOTE_HOST}:8500", {"ALL_PROXY": "socks5://127.0.0.1:9"}, "ALL_PROXY=socks5://127.0.0.1:9: this proxy"),
        (
            f"{REMOTE_HOST}:8500",
            {"ALL_PROXY": "http://127.0.0.1:9"},
            "(through the proxy ALL_PROXY=http://127.0.0.1:9)",
        ),
    ],
)
def test_predict_names_the_proxy_in_errors(tmp_path, environment, option, host, variables, expected):
    (tmp_path / "cat.jpg").write_bytes(PHOTO)
    flag, form = option
    address = form.format(host.format(port=free_port()))
    done = catbreeds("predict", tmp_path / "cat.jpg", flag, address, env=variables)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("catbreeds: ")
    assert "Traceback" not in done.stderr
    assert (expected or "") in done.stderr
    if expected is None:
        assert "proxy" not in done.stderr


def test_client_with_an_unusable_proxy_can_be_closed(environment):
    environment(http_proxy="socks5://p:1")
    client = GatewayClient(f"http://{REMOTE_HOST}")
    with pytest.raises(ClientError):
        client.ready()
    client.close()
