"""Which proxy a server is reached by.

Enters: one server's address; the environment's ``HTTP_PROXY``, ``HTTPS_PROXY``,
``ALL_PROXY`` and ``NO_PROXY``, read as `urllib.request` does. Leaves: a proxy, or none.
This machine is never reached by one: a request to it carries the key in the clear.
"""

from __future__ import annotations

import ipaddress
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx


def open_pool(url: str, **options) -> httpcore.AsyncConnectionPool:
    """Return connections to one server, by the proxy that is right for it.

    Raises
    ------
    ValueError
        A proxy that is not reached by HTTP.
    """
    proxy = choose_proxy(httpx.URL(url))
    if proxy is None:
        return httpcore.AsyncConnectionPool(**options)
    address = httpcore.URL(str(proxy.url))
    return httpcore.AsyncHTTPProxy(address, proxy_auth=proxy.raw_auth, **options)


def choose_proxy(url: httpx.URL) -> httpx.Proxy | None:
    """Return the environment's proxy for `url`; none for this machine.

    Raises
    ------
    ValueError
        A proxy that is not reached by HTTP.
    """
    host = url.netloc.decode()  # with its port, which NO_PROXY may name
    if _is_this_machine(url.host) or proxy_bypass(host):
        return None
    proxies = getproxies()
    address = proxies.get(url.scheme) or proxies.get("all")
    if not address:
        return None
    scheme, separator, _ = address.partition("://")
    if separator and scheme not in ("http", "https"):
        # The address itself may hold a password.
        raise ValueError(
            f"{url.scheme.upper()}_PROXY or ALL_PROXY: a proxy of scheme {scheme!r}. "
            "Allowed: http, https; NO_PROXY names servers that need none"
        )
    return httpx.Proxy(address if separator else f"http://{address}")


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
