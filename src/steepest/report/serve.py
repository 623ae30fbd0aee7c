"""Serves the site on this machine, live while studies run: pages are rendered when they are asked for.

Server-sent events carry the state of the runs to the live page. The server listens on 127.0.0.1 only, answers only to
that name, and reads the store; it never writes there.
"""

from __future__ import annotations

import json
import mimetypes
import re
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from steepest.core.records import RESERVED, RunRecord, Store
from steepest.report.live import live_view
from steepest.report.pages import Study, read_study
from steepest.report.site import Renderer, read_runs
from steepest.studies import registry

__all__ = ["LiveSite", "make_server"]

EVERY, BEAT = 1.0, 5.0  # seconds between two looks at the state, and at most between two words to a page
PICTURE = re.compile(r"[a-z0-9-]+\.png")


class LiveSite:
    """The site as it is now: reads what changed in the store, renders what is asked for and keeps it until it changes.

    Parameters
    ----------
    store : Store
    pictures : path
        A folder for the pictures of pages.
    """

    def __init__(self, store: Store, pictures: Path) -> None:
        self.store, self.pictures = store, pictures
        self.site = Renderer(live=True)
        self.assets = self.site.assets()
        self._reading, self._drawing = threading.Lock(), threading.Lock()
        self._seen: tuple[Any, ...] | None = None
        self._runs: list[RunRecord] = []
        self._problems: list[str] = []
        self._studies: dict[str, Study] = {}
        self._pages: dict[str, tuple[tuple[Any, ...], str]] = {}

    def _look(self) -> None:
        """Read the store again if folders came, went or changed."""
        seen = tuple(sorted(_stamps(self.store.root)))
        if seen == self._seen:
            return
        self._runs, self._problems = read_runs(self.store)
        for m in registry.METHODS.values():
            mine = [r for r in self._runs if r.key == m.key]
            known = self._studies.get(m.key)
            if known is None or [r.id for r in known.runs] != [r.id for r in mine]:
                self._studies[m.key] = read_study(self.store, m, mine)
        self._seen = seen

    def page(self, path: str) -> str | None:
        """Render the page at `path` ("index.html", "live.html" or "method/<key>.html"); None where there is none."""
        with self._reading:
            self._look()
            studies, problems, seen = list(self._studies.values()), self._problems, self._seen
        if path == "live.html":
            return self.site.live()
        if path == "index.html":
            return self._kept(path, (seen,), lambda: self.site.index(studies, problems))
        keys = [f"method/{s.method.key}.html" for s in studies]
        if path not in keys:
            return None
        i = keys.index(path)
        study, before, after = (studies[j] if 0 <= j < len(studies) else None for j in (i, i - 1, i + 1))
        assert study is not None
        sign = (tuple(r.id for r in study.runs), study.code)
        return self._kept(path, sign, lambda: self.site.method(study, before, after, self.pictures))

    def _kept(self, path: str, sign: tuple[Any, ...], render: Callable[[], str]) -> str:
        with self._drawing:
            if path not in self._pages or self._pages[path][0] != sign:
                self._pages[path] = (sign, render())
            return self._pages[path][1]

    def state(self) -> dict[str, Any]:
        """Give what the live page shows."""
        with self._reading:
            self._look()
            return live_view(self.store, self._runs)


def _stamps(root: Path) -> list[tuple[str, int]]:
    with suppress(FileNotFoundError):
        runs = (p for p in root.iterdir() if not p.name.startswith(".") and p.name not in RESERVED)
        return [(p.name, p.stat().st_mtime_ns) for p in runs]
    return []


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.headers.get("Host", "").rpartition(":")[0] not in ("127.0.0.1", "localhost"):
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"this site answers to 127.0.0.1 only\n")
            return
        path = self.path.partition("?")[0].lstrip("/") or "index.html"
        if path == "events":
            self._events()
            return
        found = self._find(path)
        if found is None:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"there is no such page\n")
        else:
            self._send(HTTPStatus.OK, mimetypes.guess_type(path)[0] or "text/html", found)

    do_HEAD = do_GET

    def _find(self, path: str) -> bytes | None:
        site = self.server.site
        if path.startswith("static/"):
            text = site.assets.get(path.removeprefix("static/"))
            return None if text is None else text.encode()
        if path.startswith("pictures/"):
            name = path.removeprefix("pictures/")
            file = site.pictures / name
            return file.read_bytes() if PICTURE.fullmatch(name) and file.is_file() else None
        page = site.page(path)
        return None if page is None else page.encode()

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if kind.startswith("text/") else kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-cache")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _events(self) -> None:
        """Send the state whenever it changed, and a beat where it did not."""
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        last, spoke = "", 0.0
        with suppress(BrokenPipeError, ConnectionResetError, ConnectionAbortedError):
            while not self.server.closing.wait(EVERY if last else 0):
                text = json.dumps(self.server.site.state())
                if text != last:
                    self.wfile.write(f"data: {text}\n\n".encode())
                elif time.monotonic() - spoke > BEAT:
                    self.wfile.write(b"event: beat\ndata:\n\n")
                else:
                    continue
                self.wfile.flush()
                last, spoke = text, time.monotonic()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the terminal quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, site: LiveSite, folder: tempfile.TemporaryDirectory[str]) -> None:
        self.site, self.folder, self.closing = site, folder, threading.Event()
        super().__init__(("127.0.0.1", port), _Handler)

    def server_close(self) -> None:
        """Let open streams end, and clear away the pictures."""
        self.closing.set()
        super().server_close()
        self.folder.cleanup()


def make_server(store: Store, port: int = 0) -> _Server:
    """Make the server of the live site; call its ``serve_forever``, and ``server_close`` at the end.

    Parameters
    ----------
    store : Store
    port : int
        On 127.0.0.1; 0 takes a free one (``server_address`` tells which).

    Raises
    ------
    OSError
        The port is taken.
    """
    folder = tempfile.TemporaryDirectory(prefix="steepest-site-")
    try:
        return _Server(port, LiveSite(store, Path(folder.name)), folder)
    except BaseException:
        folder.cleanup()
        raise
