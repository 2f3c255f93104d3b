"""An S3 endpoint that is slow and fails on purpose: a proxy with real sockets in front of another one.

    with moto_server() as server, FaultyStore(server, Faults(share=0.01, latency_s=0.1)) as store:
        os.environ["AWS_ENDPOINT_URL"] = store.url

Everything that passes is written down, so that requests can be counted.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import re
import socket
import struct
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

FaultKind = Literal["slow down", "internal error", "dropped before", "dropped after", "cut short"]
ANY_FAULT: tuple[FaultKind, ...] = ("slow down", "internal error", "dropped before", "dropped after", "cut short")

_ERRORS = {"slow down": (503, "SlowDown"), "internal error": (500, "InternalError")}
_HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "server", "date"}


@dataclass(frozen=True, slots=True)
class Faults:
    """How a store behaves.

    share: of the requests that end in a fault
    kinds: the faults to draw from. `dropped before` and `dropped after` close the connection without an answer, before
        or after the request is carried out; `cut short` does so in the middle of the answer's body
    latency_s: how long each request waits before anything happens
    streak: a request that failed so often in a row is carried out; None to go on failing
    only: the methods that may fail, all for ()
    """

    share: float = 0.0
    kinds: tuple[FaultKind, ...] = ANY_FAULT
    latency_s: float = 0.0
    streak: int | None = 3
    only: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One request: its method, path with query, Range header or "", the answer's body bytes, and its fault or ""."""

    method: str
    path: str
    range: str
    bytes: int
    fault: str

    @property
    def lists(self) -> bool:
        """Whether it lists objects."""
        return self.method == "GET" and ("list-type=" in self.path or "uploads" in self.path)


class FaultyStore:
    """The proxy, from `with` to its end; `log` and `faults` may be read and set at any time."""

    def __init__(self, upstream: str, faults: Faults, *, keeps: bool = False) -> None:
        """Stand in front of the endpoint `upstream` ("http://host:port").

        keeps: read each object upstream once, and answer from memory: the store's own speed does not count. Only for
            objects that never change
        """
        self.kept: dict[str, bytes] | None = {} if keeps else None
        # Answers then do not say which condition of a request failed: Ceph's do not, Amazon's do.
        self.terse = False
        self.upstream = urllib.parse.urlsplit(upstream).netloc
        self.log: list[Request] = []
        self.running = self.most_running = 0
        self._lock = threading.Lock()
        self.faults = faults
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def faults(self) -> Faults:
        """How the store behaves now; setting it starts its random numbers again."""
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        with self._lock:
            self._faults = faults
            self._random = random.Random(faults.seed)
            self._failed: Counter[tuple[str, str, str]] = Counter()

    def draw(self, method: str, path: str, byte_range: str) -> FaultKind | None:
        """Return what goes wrong with this request."""
        key = method, path, byte_range
        with self._lock:
            faults = self._faults
            if faults.only and method not in faults.only:
                return None
            if faults.streak is not None and self._failed[key] >= faults.streak:
                del self._failed[key]
                return None
            if self._random.random() >= faults.share:
                self._failed.pop(key, None)
                return None
            self._failed[key] += 1
            return self._random.choice(faults.kinds)

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Count a request while it waits; `most_running` is the most that ever did at once, and may be set."""
        with self._lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            yield
        finally:
            with self._lock:
                self.running -= 1

    def __enter__(self) -> FaultyStore:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    store: FaultyStore
    protocol_version = "HTTP/1.1"
    # An answer is written in several pieces, which must not wait for one another.
    disable_nagle_algorithm = True

    def _answer(self) -> None:
        body = self._body()
        byte_range = self.headers.get("Range", "")
        with self.store.request():
            time.sleep(self.store.faults.latency_s)
        fault = self.store.draw(self.command, self.path, byte_range)
        headers: list[tuple[str, str]] = []
        status, answer = 0, b""
        if fault in _ERRORS:
            status, code = _ERRORS[fault]
            headers = [("Content-Type", "application/xml")]
            answer = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>on purpose</Message></Error>".encode()
        elif fault != "dropped before":
            bounds = re.fullmatch(r"bytes=(\d+)-(\d+)", byte_range)
            if self.store.kept is not None and self.command == "GET" and bounds:
                status, headers, answer = self._kept(int(bounds[1]), int(bounds[2]) + 1)
            else:
                status, headers, answer = self._forward(body)
        # Written down first: who has the answer may look.
        self.store.log.append(Request(self.command, self.path, byte_range, len(answer), fault or ""))
        try:
            if fault in ("dropped before", "dropped after"):
                self._drop()
            else:
                self._send(status, headers, answer, cut=fault == "cut short")
        except ConnectionError:
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815 - the names that http.server looks for

    def log_message(self, *values: object) -> None:
        """Say nothing: `FaultyStore.log` has it."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _kept(self, start: int, stop: int) -> tuple[int, list[tuple[str, str]], bytes]:
        """Answer a range of an object from memory."""
        assert self.store.kept is not None
        if (whole := self.store.kept.get(self.path)) is None:
            del self.headers["Range"]
            status, headers, whole = self._forward(b"")
            if status != 200:
                return status, headers, whole
            self.store.kept[self.path] = whole
        stop = min(stop, len(whole))
        return 206, [("Content-Range", f"bytes {start}-{stop - 1}/{len(whole)}")], whole[start:stop]

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.store.upstream)
        with contextlib.closing(connection):
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP_HEADERS | {"expect", "content-length"}:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP_HEADERS]
            content = answer.read()
            if self.store.terse and answer.status == 412:
                content = re.sub(rb"<Condition>.*?</Condition>", b"", content)
            return answer.status, headers, content

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes, cut: bool = False) -> None:
        self.send_response(status)
        # The answer to HEAD states the length of a body that it does not have.
        lengths = [value for name, value in headers if name.lower() == "content-length"]
        length = lengths[0] if self.command == "HEAD" and lengths else str(len(body))
        for name, value in headers:
            if name.lower() != "content-length":
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.wfile.flush()
        if cut:
            self._drop()

    def _drop(self) -> None:
        """Close the connection at once, with a reset instead of a farewell."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


@contextlib.contextmanager
def moto_server() -> Iterator[str]:
    """Run an S3 server of our own in a thread; yield its endpoint's URL."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    # Not threaded: moto's own test-and-write is no more atomic than a dictionary, the real store's is.
    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
