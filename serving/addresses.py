"""Addresses and ports that servers listen on, and the syntax of addresses that clients connect to."""

import contextlib
import ipaddress
import itertools
import random
import re
import socket

LOOPBACK = "127.0.0.1"
# Default ports of the model server's gRPC and REST APIs, the gateway and the page.
GRPC_PORT, REST_PORT, GATEWAY_PORT, PAGE_PORT = 8500, 8501, 8000, 8080
# Linux assigns ports from 32768 to connections; Kubernetes uses 30000 to 32767 for Services of the type NodePort.
_SERVER_PORTS = range(20_000, 30_000)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
# Name resolvers of gRPC.
_RESOLVERS = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds")
_PORT = re.compile(r"(?:[a-z]+://)?[^/?#]*:(\d+)(?:[/?#]|$)", re.IGNORECASE)
# Loopback addresses of servers that listen on all addresses.
_LOOPBACK_OF = {"0.0.0.0": LOOPBACK, "::": "::1"}


def resolve(host: str) -> str:
    """Return the IP address of `host`, an address or a name; IPv4 is preferred if a name has several addresses.

    Raises:
        OSError: If the name cannot be resolved.
        ValueError: If `host` is neither an address nor a name, has a network interface (URLs cannot contain one), or is
            a multicast address.
    """
    host = without_brackets(host)
    if not host or "%" in host:
        raise ValueError("not an IP address or a host name")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return min(entries, key=lambda entry: entry[0] != socket.AF_INET)[4][0]
    if ip.is_multicast:  # a server can bind to it, but no client can connect
        raise ValueError("a multicast address")
    return str(ip)


def without_brackets(host: str) -> str:
    """Return `host` without the brackets that enclose an IPv6 address in a URL."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def has_valid_port(address: str) -> bool:
    """Return whether the port of `address`, a URL or HOST:PORT, is valid.

    A missing port and a port that is not a number count as valid.
    """
    port = _PORT.match(address)
    return port is None or 1 <= int(port[1]) <= 65535


def grpc_target_error(target: str) -> str:
    """Return why `target` is not a valid gRPC target; an empty string if it is valid."""
    scheme = _SCHEME.match(target)
    if scheme and scheme[1].lower() not in _RESOLVERS:
        return "a gRPC address is not a URL"
    if not has_valid_port(target):
        return "the port must be between 1 and 65535"
    if ":" not in target:
        return "the port is missing"  # gRPC would use port 443
    return ""


def listen(host: str, port: int, backlog: int | None = None) -> socket.socket:
    """Return a TCP socket that listens on `host`. With "::", it also accepts IPv4 connections if the system can.

    Raises:
        OSError: If the socket cannot listen on the address.
    """
    return socket.create_server(
        (host, port),
        family=socket.AF_INET6 if ":" in host else socket.AF_INET,
        backlog=backlog,
        dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
    )


def address(host: str, port: int) -> str:
    """Return `host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def local_address(host: str, port: int) -> str:
    """Return the `host:port` by which this machine reaches a server that listens on `host`."""
    return address(_LOOPBACK_OF.get(host, host), port)


def free_ports(count: int) -> list[int]:
    """Return `count` different TCP ports that are free on the loopback address.

    They are random ports below those that Linux assigns to connections by default, so that another process is unlikely
    to take one before the caller's server listens on it.

    Raises:
        OSError: If too few ports are free.
    """
    candidates = random.SystemRandom().sample(_SERVER_PORTS, len(_SERVER_PORTS))
    ports = list(itertools.islice(filter(_is_free, candidates), count))
    if len(ports) < count:
        raise OSError(f"fewer than {count} ports between {_SERVER_PORTS[0]} and {_SERVER_PORTS[-1]} are free")
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind((LOOPBACK, port))
        return True
    return False
