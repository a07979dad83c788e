"""Connections, through the proxy that the environment names: http_proxy, https_proxy, no_proxy."""
import base64
import http.client
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

THIS_MACHINE = "localhost", "127.0.0.1", "::1"


def proxy_for(scheme, host):
    """-> the proxy's address, parsed, or None. A server on this machine is asked without one."""
    address = getproxies().get(scheme)
    if not address or host in THIS_MACHINE or proxy_bypass(host):
        return None
    proxy = urlsplit(address if "//" in address else f"http://{address}")
    if proxy.scheme != "http" or not proxy.hostname:
        raise ValueError(f"the proxy of {scheme}_proxy is not an address such as http://host:3128")
    return proxy


def connect(scheme, host, port, proxy, timeout):
    """-> a connection that is not open yet, and the headers that the proxy wants of a request.

    With https the proxy is only asked for a tunnel to the host: it sees neither key nor text.
    """
    kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
    if not proxy:
        return kind(host, port, timeout=timeout), {}
    connection = kind(proxy.hostname, proxy.port or 80, timeout=timeout)
    if scheme == "https":
        connection.set_tunnel(host, port, credentials(proxy))
        return connection, {}
    return connection, credentials(proxy)


def credentials(proxy):
    """http://name:password@host -> the header that says so"""
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
