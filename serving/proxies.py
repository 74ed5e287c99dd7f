"""Which proxy a connection goes through: none to this machine; to others as the environment says.

The environment variables are http_proxy, https_proxy, all_proxy and no_proxy; gRPC takes grpc_proxy and no_grpc_proxy
first. Each may also be written in capital letters; small letters take precedence. no_proxy lists hosts, domains
(example.org, .example.org or *.example.org), addresses and networks such as 10.0.0.0/8, or is *.
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
_HOST = re.compile(r"[\w.:%-]+")  # of a URL: a name or an IP address
# Of gRPC's targets: a resolver, and perhaps an authority.
_RESOLVER = re.compile(r"(?P<name>[a-z][a-z0-9+.-]*):(?://[^/]*/)?(?![0-9]+$)")


class ProxyError(ValueError):
    """A variable of the environment names a proxy that cannot be used; the message names the variable."""


class Proxy(NamedTuple):
    """A proxy.

    Attributes:
        variable: of the environment, which names it.
        url: its address, perhaps with a user and a password.
    """

    variable: str
    url: str

    def __str__(self) -> str:
        """The variable and the address, without the password."""
        parts = urlsplit(self.url)
        return f"{self.variable}={parts._replace(netloc=parts.netloc.rpartition('@')[2]).geturl()}"

    @property
    def headers(self) -> dict[str, str]:
        """The header by which a client signs in at the proxy; none without a user."""
        parts = urlsplit(self.url)
        if parts.username is None:
            return {}
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        return {"Proxy-Authorization": f"Basic {base64.b64encode(secret).decode()}"}


def find(address: str) -> Proxy | None:
    """The proxy for a URL that begins with http:// or https://, or for a target of gRPC; None: there is no proxy.

    Raises:
        ProxyError: it is no HTTP proxy.
    """
    scheme, host, port = _parts(address)
    if not host or _is_this_machine(host):
        return None
    names = (f"{scheme}_proxy", "all_proxy")
    no_proxy = ("no_proxy",)
    if scheme == _GRPC:
        names, no_proxy = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy"), ("no_grpc_proxy", "no_proxy")
    variable, value = _first(names)
    if not value or _is_bypassed(host, port, _first(no_proxy)[1]):
        return None
    proxy = Proxy(variable, value if "://" in value else f"http://{value}")
    _refuse_unsupported(proxy, scheme, host)
    return proxy


def through(address: str) -> str:
    """For messages: "" or the proxy by which `address` is reached, in parentheses, with a blank before."""
    try:
        proxy = find(address)
    except ProxyError as error:
        return f" ({error})"
    return f" (through the proxy {proxy})" if proxy else ""


def grpc_options(target: str) -> list[tuple[str, str | int]]:
    """Options of a gRPC channel to `target`; without them gRPC asks a proxy for this machine, too.

    Raises:
        ProxyError: see `find`.
    """
    proxy = find(target)
    return [("grpc.http_proxy", proxy.url)] if proxy else [("grpc.enable_http_proxy", 0)]


def apply_to_libraries() -> None:
    """Changes this process's environment so that libraries which read it by themselves find the same proxies."""
    value = ",".join(_hosts(_first(("no_proxy",))[1]))
    if value != "*":
        value = ",".join(filter(None, [value, *_THIS_MACHINE]))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = value
    for scheme in _PORTS:
        _, value = _first((f"{scheme}_proxy", "all_proxy"))
        if value:
            os.environ[f"{scheme}_proxy"] = value


def _first(names: Iterable[str]) -> tuple[str, str]:
    """The first of the variables that has a value, and its value; empty if none has."""
    for name in names:
        # A web server puts the header Proxy of a request there.
        capital = "" if name == "http_proxy" and "REQUEST_METHOD" in os.environ else name.upper()
        variable = name if name in os.environ else capital
        if value := os.environ.get(variable, "").strip():
            return variable, value
    return "", ""


def _parts(address: str) -> tuple[str, str, int | None]:
    """Scheme, host and port; no host where there is none, or where `address` is wrong, which others say."""
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
        probe.bind((str(ip), 0))  # only an address of this machine can be had
        return not ip.is_multicast
    return False


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with suppress(OSError):
        return ipaddress.IPv4Address(socket.inet_aton(host))  # knows short forms, such as 127.1
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
    """The items of no_proxy, with commas or blanks between; *.example.org is what others write as .example.org."""
    return [f".{name[2:]}" if name.startswith("*.") else name for name in re.split(r"[,\s]+", no_proxy) if name]


def _refuse_unsupported(proxy: Proxy, scheme: str, host: str) -> None:
    kinds = ("http",) if scheme == _GRPC else ("http", "https")
    try:
        parts = urlsplit(proxy.url)
        has_host = _HOST.fullmatch(parts.hostname or "") is not None
        usable = parts.scheme.lower() in kinds and has_host and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
        proxy = proxy._replace(url="...")
    if not usable:
        raise ProxyError(
            f"{proxy}: no such proxy can be used. Set {proxy.variable} to the address of an HTTP proxy, "
            f"http://HOST:PORT, or add {host} to no_proxy"
        )
