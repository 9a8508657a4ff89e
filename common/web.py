"""The client that files are fetched with: http and https alone, through the environment's proxies.

Proxies are those of http_proxy, https_proxy, all_proxy and no_proxy, certificates those of REQUESTS_CA_BUNDLE,
CURL_CA_BUNDLE or SSL_CERT_FILE, as pip takes them.
"""

import os
import ssl
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from common.errors import UserError

BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


class SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https alone, and never from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        kind = newurl.partition(":")[0].lower()
        if kind not in ("http", "https") or (req.type == "https" and kind == "http"):
            raise HTTPError(req.full_url, code, f"(sends on to {kind}:, which is refused)", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def opener() -> urllib.request.OpenerDirector:
    """A client for http and https alone, with the environment's proxies and certificates."""
    proxies = urllib.request.getproxies()
    for scheme in ("http", "https"):
        if "all" in proxies:
            proxies.setdefault(scheme, proxies["all"])
    made = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler(proxies), urllib.request.HTTPHandler(),
                    urllib.request.HTTPSHandler(context=certificates()), SafeRedirects(),
                    urllib.request.HTTPDefaultErrorHandler(), urllib.request.HTTPErrorProcessor(),
                    urllib.request.UnknownHandler()):
        made.add_handler(handler)
    return made


def certificates() -> ssl.SSLContext:
    """Those that the environment names, else the system's."""
    name = next((name for name in BUNDLES if os.environ.get(name)), None)
    if name is None:
        return ssl.create_default_context()
    place = Path(os.environ[name])
    try:
        return ssl.create_default_context(**{"capath" if place.is_dir() else "cafile": str(place)})
    except OSError as error:
        raise UserError(f"the environment's {name}={place} cannot be read as certificates: mend or unset it",
                        code="E-DOWNLOAD") from error
