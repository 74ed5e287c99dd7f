"""Where servers listen: the addresses of this machine, IPv4 and IPv6."""

import ipaddress
import re
import socket

LOOPBACK = "127.0.0.1"
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
# gRPC's resolvers of names.
_RESOLVERS = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds")
_PORT = re.compile(r"(?:[a-z]+://)?[^/?#]*:(\d+)(?:[/?#]|$)", re.IGNORECASE)
# What is bound to all addresses is reached on this machine by loopback.
_REACHED_BY = {"0.0.0.0": LOOPBACK, "::": "::1"}


def resolve(host: str) -> str:
    """The IP address that `host`, an address or a name, stands for; of a name with several, an IPv4 one.

    Raises:
        OSError: the name is unknown.
        ValueError: it is no host, an address of a single network interface, which no URL can name, or of a group.
    """
    host = without_brackets(host)
    if not host or "%" in host:
        raise ValueError("not an IP address or a host name")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0]
    if ip.is_multicast:  # a server can bind to it, but no client can connect
        raise ValueError("a multicast address")
    return str(ip)


def without_brackets(host: str) -> str:
    """`host`; an IPv6 address that is written as in a URL, without its brackets."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def has_possible_port(address: str) -> bool:
    """Whether the port of `address`, a URL or HOST:PORT, can be one; also where it has none, or no number."""
    port = _PORT.match(address)
    return port is None or 1 <= int(port[1]) <= 65535


def wrong_grpc_target(target: str) -> str:
    """Why `target` cannot be a target of gRPC; "" if nothing is wrong."""
    scheme = _SCHEME.match(target)
    if scheme and scheme[1].lower() not in _RESOLVERS:
        return "gRPC has no URLs"
    if not has_possible_port(target):
        return "a port is 1 to 65535"
    if ":" not in target:
        return "the port is missing"  # gRPC would take 443
    return ""


def listen(host: str, port: int, backlog: int | None = None) -> socket.socket:
    """A TCP socket that listens on `host`; on "::" it takes IPv4 connections, too, where the system can.

    Raises:
        OSError: it cannot.
    """
    return socket.create_server(
        (host, port),
        family=socket.AF_INET6 if ":" in host else socket.AF_INET,
        backlog=backlog,
        dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
    )


def address(host: str, port: int) -> str:
    """`host:port`, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def local_address(host: str, port: int) -> str:
    """`host:port` by which this machine reaches what listens on `host`."""
    return address(_REACHED_BY.get(host, host), port)
