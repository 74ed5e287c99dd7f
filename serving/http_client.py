"""HTTP clients that go by proxies as `serving.proxies` decides for each request, those after a redirect included."""

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import httpx

from serving import proxies

_Transport = TypeVar("_Transport", httpx.HTTPTransport, httpx.AsyncHTTPTransport)


def client(**options: Any) -> httpx.Client:
    """A client with these options of `httpx.Client`; a proxy that cannot be used is a ProxyError of its requests."""
    return httpx.Client(transport=_ByEnvironment(), **options)


def async_client(**options: Any) -> httpx.AsyncClient:
    """As `client`, for asyncio."""
    return httpx.AsyncClient(transport=_AsyncByEnvironment(), **options)


class _Transports(Generic[_Transport]):
    """A transport for each proxy, and one without; made when they are first needed."""

    def __init__(self, make: Callable[..., _Transport]):
        self._make = make
        self._lock = threading.Lock()  # threads share a client
        self._made: dict[str | None, _Transport] = {}

    def of(self, request: httpx.Request) -> _Transport:
        proxy = proxies.find(str(request.url))
        url = proxy.url if proxy else None
        with self._lock:
            if url not in self._made:
                self._made[url] = self._make(proxy=url)
            return self._made[url]

    def all(self) -> list[_Transport]:
        return list(self._made.values())


class _ByEnvironment(httpx.BaseTransport):
    def __init__(self):
        self._transports = _Transports(httpx.HTTPTransport)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._transports.of(request).handle_request(request)

    def close(self) -> None:
        for transport in self._transports.all():
            transport.close()


class _AsyncByEnvironment(httpx.AsyncBaseTransport):
    def __init__(self):
        self._transports = _Transports(httpx.AsyncHTTPTransport)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._transports.of(request).handle_async_request(request)

    async def aclose(self) -> None:
        for transport in self._transports.all():
            await transport.aclose()
