"""Which proxy a server is reached by.

Enters: one server's address; the environment's ``HTTP_PROXY``, ``HTTPS_PROXY``,
``ALL_PROXY`` and ``NO_PROXY``, read as `urllib.request` does. Leaves: a proxy, or none.
This machine is never reached by one: a request to it carries the key in the clear.
"""

from __future__ import annotations

import ipaddress
import ssl
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from cotspec.teacher.network import Lane, Network, PlainNetwork


def open_lane(
    url: str, ssl_context: ssl.SSLContext
) -> Lane | httpcore.AsyncConnectionPool:
    """Return a connection to one server, by the proxy that is right for it.

    Raises
    ------
    ValueError
        A proxy that is not reached by HTTP.
    """
    proxy = choose_proxy(httpx.URL(url))
    if proxy is None:
        is_plain = url.startswith("http:")
        network = PlainNetwork() if is_plain else Network()
        return Lane(url, ssl_context=ssl_context, network_backend=network)
    address = httpcore.URL(str(proxy.url))
    return httpcore.AsyncHTTPProxy(
        address,
        proxy_auth=proxy.raw_auth,
        max_connections=1,
        ssl_context=ssl_context,
        network_backend=Network(),
    )


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
