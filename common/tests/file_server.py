"""A server on this machine that sends files, whole, from any byte on, or badly, and remembers what it was asked."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """content: path -> bytes; the other settings are one for all paths.

    ranges: it goes on where it is asked to; etag, length: it says them; cuts: it breaks off after so many bytes, one
    number a request, None: it does not; statuses: it answers so, one a request; moved: path -> where it is sent to.
    """

    content: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    etag: str | None = '"one"'
    length: bool = True
    cuts: list[int | None] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    moved: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)        # path, Range, If-Range
    url: str = ""

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])


@contextmanager
def serving() -> Iterator[Site]:
    """A Site that can be reached at its `url`."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self, site)

        def log_message(self, *given: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield site
        server.shutdown()


def answer(request: BaseHTTPRequestHandler, site: Site) -> None:
    """What the site answers to a request."""
    asked, condition = request.headers.get("Range"), request.headers.get("If-Range")
    site.asked.append((request.path, asked, condition))
    status = site.statuses.pop(0) if site.statuses else 200
    if status != 200 or request.path in site.moved:
        request.send_response(302 if request.path in site.moved else status)
        if request.path in site.moved:
            request.send_header("Location", site.moved[request.path])
        request.send_header("Content-Length", "0")
        request.end_headers()
        return
    found = site.content.get(request.path)
    if found is None:
        return request.send_error(404)
    begin = 0
    if asked and site.ranges and condition in (None, site.etag):
        begin = int(asked.removeprefix("bytes=").removesuffix("-"))
    if begin >= len(found) > 0:
        request.send_response(416)
        request.send_header("Content-Range", f"bytes */{len(found)}")
        request.send_header("Content-Length", "0")
        request.end_headers()
        return
    request.send_response(206 if begin else 200)
    if begin:
        request.send_header("Content-Range", f"bytes {begin}-{len(found) - 1}/{len(found)}")
    if site.etag:
        request.send_header("ETag", site.etag)
    if site.length:
        request.send_header("Content-Length", str(len(found) - begin))
    request.end_headers()
    cut = site.cuts.pop(0) if site.cuts else None
    request.wfile.write(found[begin:] if cut is None else found[begin:begin + cut])
    request.close_connection = True
