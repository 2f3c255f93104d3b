"""A plain web server of a folder, in a thread, with ranges or without."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote


@dataclass
class WebServer:
    """Where it is, what it was asked for, as (method, path, range), and what it should answer in place of a file.

    failures: path to the statuses that the next requests for it are answered with
    absent: the status of a file that is not there
    """

    url: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    failures: dict[str, list[int]] = field(default_factory=dict)
    absent: int = 404


@contextmanager
def web_server(folder: Path, ranges: bool = True) -> Iterator[WebServer]:
    """Serve the files below `folder` until the block is left; it lists nothing."""
    about = WebServer()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, body: bool) -> None:
            path = unquote(self.path).lstrip("/")
            asked = self.headers.get("Range", "")
            about.requests.append((self.command, path, asked))
            file = folder / path
            if about.failures.get(path):
                self._send(about.failures[path].pop(0), b"", body)
            elif not file.is_file():
                self._send(about.absent, b"not here", body)
            elif (bounds := re.fullmatch(r"bytes=(\d+)-(\d*)", asked)) and ranges:
                data = file.read_bytes()
                start, last = int(bounds[1]), min(int(bounds[2] or len(data) - 1), len(data) - 1)
                if start > last:
                    self._send(416, b"", body)
                else:
                    self._send(206, data[start : last + 1], body, f"bytes {start}-{last}/{len(data)}")
            else:
                self._send(200, file.read_bytes(), body)

        def _send(self, status: int, data: bytes, body: bool, content_range: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if content_range:
                self.send_header("Content-Range", content_range)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    about.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield about
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
