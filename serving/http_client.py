"""httpx clients that choose a proxy for each request, including redirects, by the rules of `serving.proxies`."""

import threading
from typing import Any

import httpx

from serving import proxies


def client(**options: Any) -> httpx.Client:
    """Return an httpx client whose requests raise ProxyError if their proxy cannot be used.

    Args:
        options: Arguments of `httpx.Client`.
    """
    return httpx.Client(transport=_ProxyTransport(), **options)


class _ProxyTransport(httpx.BaseTransport):
    """Transport that sends each request through its proxy, with one httpx transport per proxy, created on first use."""

    def __init__(self):
        self._lock = threading.Lock()  # threads share a client
        self._transports: dict[str | None, httpx.HTTPTransport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._transport(request).handle_request(request)

    def close(self) -> None:
        for transport in self._transports.values():
            transport.close()

    def _transport(self, request: httpx.Request) -> httpx.HTTPTransport:
        proxy = proxies.find(str(request.url))
        url = proxy.url if proxy else None
        with self._lock:
            if url not in self._transports:
                self._transports[url] = httpx.HTTPTransport(proxy=url)
            return self._transports[url]
