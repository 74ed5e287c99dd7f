"""Select the proxy for a connection from the environment. Connections to this machine never use a proxy.

The environment variables are http_proxy, https_proxy, all_proxy and no_proxy; for gRPC, grpc_proxy and no_grpc_proxy
take precedence. The names may be in upper case; lower case takes precedence. no_proxy is *, or lists hosts,
domains (example.org, .example.org or *.example.org), addresses, and networks such as 10.0.0.0/8.
"""

import base64
import ipaddress
import os
import re
import socket
import urllib.request
from collections.abc import Iterable
from contextlib import closing, suppress
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

_THIS_MACHINE = ("localhost", "127.0.0.0/8", "127.0.0.1", "::1")
_PORTS = {"http": 80, "https": 443}
_GRPC = "grpc"
_HOST = re.compile(r"[\w.:%-]+")  # host of a URL: a name or an IP address
# Prefix of a gRPC target: a resolver and an optional authority.
_RESOLVER = re.compile(r"(?P<name>[a-z][a-z0-9+.-]*):(?://[^/]*/)?(?![0-9]+$)")


class ProxyError(ValueError):
    """An environment variable is set to an unusable proxy; the message names the variable."""


class Proxy(NamedTuple):
    """A proxy.

    Attributes:
        variable: Environment variable that sets it.
        url: URL, optionally with a user and a password.
    """

    variable: str
    url: str

    def __str__(self) -> str:
        """Return the variable and the URL without user and password."""
        parts = urlsplit(self.url)
        return f"{self.variable}={parts._replace(netloc=parts.netloc.rpartition('@')[2]).geturl()}"

    @property
    def headers(self) -> dict[str, str]:
        """Authentication header for the proxy; empty without a user."""
        parts = urlsplit(self.url)
        if parts.username is None:
            return {}
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        return {"Proxy-Authorization": f"Basic {base64.b64encode(credentials).decode()}"}


def find(address: str) -> Proxy | None:
    """Return the proxy for an HTTP(S) URL or a gRPC target; None for a direct connection.

    Raises:
        ProxyError: If the environment variable is set to an unusable proxy.
    """
    scheme, host, port = _split(address)
    if not host or _is_this_machine(host):
        return None
    names = (f"{scheme}_proxy", "all_proxy")
    no_proxy = ("no_proxy",)
    if scheme == _GRPC:
        names, no_proxy = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy"), ("no_grpc_proxy", "no_proxy")
    variable, value = _first_set(names)
    if not value or _is_bypassed(host, port, _first_set(no_proxy)[1]):
        return None
    proxy = Proxy(variable, value if "://" in value else f"http://{value}")
    _require_supported(proxy, scheme, host)
    return proxy


def through(address: str) -> str:
    """Return " (through the proxy ...)" for messages; an empty string if `address` is reached directly."""
    try:
        proxy = find(address)
    except ProxyError as error:
        return f" ({error})"
    return f" (through the proxy {proxy})" if proxy else ""


def grpc_options(target: str) -> list[tuple[str, str | int]]:
    """Return the options of a gRPC channel to `target`; by default, gRPC would use a proxy even for this machine.

    Raises:
        ProxyError: See `find`.
    """
    proxy = find(target)
    return [("grpc.http_proxy", proxy.url)] if proxy else [("grpc.enable_http_proxy", 0)]


def apply_to_libraries() -> None:
    """Change the environment so that libraries that read it themselves select the same proxies."""
    value = ",".join(_hosts(_first_set(("no_proxy",))[1]))
    if value != "*":
        value = ",".join(filter(None, [value, *_THIS_MACHINE]))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = value
    for scheme in _PORTS:
        _, value = _first_set((f"{scheme}_proxy", "all_proxy"))
        if value:
            os.environ[f"{scheme}_proxy"] = value


def _first_set(names: Iterable[str]) -> tuple[str, str]:
    """Return the first of the variables that is set, and its value; empty strings if none is set."""
    for name in names:
        # CGI servers store the request header "Proxy" in HTTP_PROXY.
        upper = "" if name == "http_proxy" and "REQUEST_METHOD" in os.environ else name.upper()
        variable = name if name in os.environ else upper
        if value := os.environ.get(variable, "").strip():
            return variable, value
    return "", ""


def _split(address: str) -> tuple[str, str, int | None]:
    """Return scheme, host and port; an empty host if `address` has none or is invalid (checked elsewhere)."""
    scheme = address.partition("://")[0].lower()
    rest = address
    if scheme not in _PORTS:
        scheme = _GRPC
        if resolver := _RESOLVER.match(address):
            if resolver["name"].startswith("unix"):
                return scheme, "", None
            rest = address[resolver.end() :]
        rest = f"//{rest.partition(',')[0]}"
    try:
        parts = urlsplit(rest)
        return scheme, parts.hostname or "", parts.port or _PORTS.get(scheme)
    except ValueError:
        return scheme, "", None


def _is_this_machine(host: str) -> bool:
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost") or name == socket.gethostname().lower():
        return True
    ip = _ip(name)
    if ip is None or ip.is_loopback or ip.is_unspecified:
        return ip is not None
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    with suppress(OSError), closing(socket.socket(family)) as probe:
        probe.bind((str(ip), 0))  # succeeds only for an address of this machine
        return not ip.is_multicast
    return False


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with suppress(OSError):
        return ipaddress.IPv4Address(socket.inet_aton(host))  # accepts short forms such as 127.1
    with suppress(ValueError):
        ip = ipaddress.IPv6Address(host)
        return ip.ipv4_mapped or ip
    return None


def _is_bypassed(host: str, port: int | None, no_proxy: str) -> bool:
    hosts = _hosts(no_proxy)
    if urllib.request.proxy_bypass_environment(f"{host}:{port}" if port else host, {"no": ",".join(hosts)}):
        return True
    ip = _ip(host)
    for name in hosts if ip else ():
        with suppress(ValueError):
            if ip in ipaddress.ip_network(name.strip("[]"), strict=False):
                return True
    return False


def _hosts(no_proxy: str) -> list[str]:
    """Split no_proxy at commas and white space, and convert *.example.org to .example.org."""
    return [f".{name[2:]}" if name.startswith("*.") else name for name in re.split(r"[,\s]+", no_proxy) if name]


def _require_supported(proxy: Proxy, scheme: str, host: str) -> None:
    schemes = ("http",) if scheme == _GRPC else ("http", "https")
    try:
        parts = urlsplit(proxy.url)
        has_host = _HOST.fullmatch(parts.hostname or "") is not None
        usable = parts.scheme.lower() in schemes and has_host and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
        proxy = proxy._replace(url="...")
    if not usable:
        raise ProxyError(
            f"{proxy}: this proxy cannot be used; set {proxy.variable} to the address of an HTTP proxy, "
            f"http://HOST:PORT, or add {host} to no_proxy"
        )
