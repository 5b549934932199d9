"""A hub on this machine: as much of its interface as huggingface_hub uses to download a model."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef" * 2 + "01234567"
LARGE = 1 << 20  # bytes from which on a file is called by its SHA-256, as Git LFS does


@dataclass
class Hub:
    """The files of one model, what was asked for (method, path, range) and how many bytes of each file were sent.

    `breaks`: file -> where its connection breaks off, the first time that it is fetched that far; with `waits` only
    when that is set, `reached` being set there. `errors`: other model -> its status and X-Error-Code.
    The files of "org/gated" are gated.
    """

    name: str
    files: dict[str, bytes]
    breaks: dict[str, int] = field(default_factory=dict)
    waits: threading.Event | None = None
    reached: threading.Event = field(default_factory=threading.Event)
    errors: dict[str, tuple[int, str]] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    endpoint: str = ""

    def fetched(self) -> set[str]:
        """The files whose content was asked for."""
        return set(self.sent)


def identity(data: bytes) -> str:
    """The ETag of a file."""
    if len(data) >= LARGE:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        """The same without a body."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer, and note what was asked."""
        hub, path = self.hub, self.path.split("?")[0]
        hub.asked.append((self.command, path, self.headers.get("Range", "")))
        name = "/".join(path.removeprefix("/api/models").split("/")[1:3])
        api, resolve = f"/api/models/{name}", f"/{name}/resolve/"
        status, code = hub.errors.get(name, (404, "RepoNotFound"))
        if name not in (hub.name, "org/gated"):
            self._answer(status, b"{}", {"X-Error-Code": code})
        elif path.startswith(f"{api}/revision/"):
            if path.rsplit("/", 1)[1] not in ("main", COMMIT):
                self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            else:
                self._answer(200, json.dumps({"id": hub.name, "sha": COMMIT, "siblings": []}).encode())
        elif path.startswith(f"{api}/tree/"):
            self._answer(200, json.dumps([self._entry(each, data) for each, data in hub.files.items()]).encode())
        elif path.startswith(resolve) and (file := path[len(resolve) :].split("/", 1)[1]) in hub.files:
            if name == "org/gated":
                self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
            else:
                self._file(file, hub.files[file])
        else:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    @staticmethod
    def _entry(name: str, data: bytes) -> dict[str, Any]:
        made = {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        if len(data) >= LARGE:
            made["lfs"] = {"oid": identity(data), "size": len(data), "pointerSize": 130}
        return made

    def _file(self, name: str, data: bytes) -> None:
        hub, start = self.hub, 0
        if given := self.headers.get("Range"):
            start = int(given.removeprefix("bytes=").split("-")[0])
        headers = {"ETag": f'"{identity(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if self.command == "HEAD":
            self._answer(200, data, headers)
            return
        end = hub.breaks.get(name, len(data))
        hub.sent[name] = hub.sent.get(name, 0) + max(0, end - start)
        if start <= end < len(data):
            del hub.breaks[name]
            self._answer(206 if start else 200, data[start:], headers, cut=end - start)
        else:
            self._answer(206 if start else 200, data[start:], headers)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        """`cut`: so many bytes of the body, and then the end of the connection."""
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.hub.reached.set()
            if self.hub.waits is not None:
                self.hub.waits.wait(60)
            self.close_connection = True


@contextmanager
def serve(folder: Path, name: str = "org/name", **more: bytes) -> Iterator[Hub]:
    """A hub with the files of a folder as the model `name`, and more files by name ("a__b" is "a.b")."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub = Hub(name, {**files, **{key.replace("__", "."): data for key, data in more.items()}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
