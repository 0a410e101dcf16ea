"""A folder served as an object store: what S3 is read by, and Google Cloud Storage is read and written by."""

import email
import http.server
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "bucket"
MARKER = "~folder"  # an object whose name ends in a slash
UPLOAD = "~upload"  # one that is not whole yet
DATE = "2026-01-02T03:04:05.000Z"


@contextmanager
def object_store(folder: Path) -> Iterator[str]:
    """Serve a folder as the bucket `BUCKET`; the address as host:port.

    From another process: pyarrow holds Python's lock while it opens an object of Google's.
    """
    command = [sys.executable, __file__, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


class Handler(http.server.BaseHTTPRequestHandler):
    """Objects are named by their paths below the folder; there are no folders, only names."""

    def __init__(self, folder: Path, *args: object) -> None:
        self.folder = folder
        files = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
        self.objects = {n.removesuffix(MARKER): p for n, p in files.items() if not n.endswith(UPLOAD)}
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(url.query).items()}
        parts = [unquote(p) for p in url.path.strip("/").split("/")]
        if parts[0] == "storage":  # storage/v1/b/BUCKET/o[/NAME]
            self._google(parts[3], "/".join(parts[5:]), query)
        elif parts[:1] != [BUCKET]:
            self._send(404)
        elif len(parts) == 1:
            self._s3_listing(query)
        else:
            self._object("/".join(parts[1:]))

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        """Google's: a whole small object, or the beginning of an upload in parts."""
        url = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = url.path.strip("/").split("/")
        if parts[0] != "upload" or parts[4] != BUCKET:
            return self._send(404)
        if query["uploadType"] == "resumable":
            name = query.get("name") or json.loads(body)["name"]
            self._file(name + UPLOAD).write_bytes(b"")
            place = f"http://{self.headers['Host']}/upload/resume?name={quote(name, safe='')}"
            return self._send(200, more={"Location": place})
        kind = f"Content-Type: {self.headers['Content-Type']}\n\n".encode()
        about, data = email.message_from_bytes(kind + body).get_payload()  # type: ignore[misc]
        name = query.get("name") or json.loads(about.get_payload())["name"]
        return self._store(name, data.get_payload(decode=True))

    def do_PUT(self) -> None:
        """Google's: a part of an upload."""
        name = parse_qs(urlsplit(self.path).query)["name"][0]
        partial = self._file(name + UPLOAD)
        body = self._chunks() if "chunked" in self.headers.get("Transfer-Encoding", "") else None
        if body is None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with partial.open("ab") as out:
            out.write(body)
        size, total = partial.stat().st_size, self.headers["Content-Range"].rpartition("/")[2]
        if total == "*" or int(total) > size:
            return self._send(308, more={"Range": f"bytes=0-{size - 1}"} if size else {})
        data = partial.read_bytes()
        partial.unlink()
        return self._store(name, data)

    def do_DELETE(self) -> None:
        """Google's: an object."""
        name = unquote(urlsplit(self.path).path.strip("/").split("/", 5)[5])
        if name not in self.objects:
            return self._send(404, b'{"error": {"code": 404, "message": "Not Found"}}', "application/json")
        self.objects[name].unlink()
        return self._send(204)

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline().strip(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _store(self, name: str, data: bytes) -> None:
        self._file(name).write_bytes(data)
        self.objects[name] = self._file(name)
        self._send(200, json.dumps(self._told(name)).encode(), "application/json")

    def _file(self, name: str) -> Path:
        path = self.folder / (name + MARKER if name.endswith("/") else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _s3_listing(self, query: dict[str, str]) -> None:
        names, folders = self._below(query.get("prefix", ""), query.get("delimiter"))
        found = "".join(
            f"<Contents><Key>{escape(n)}</Key><Size>{self.objects[n].stat().st_size}</Size>"
            f"<LastModified>{DATE}</LastModified></Contents>"
            for n in names
        )
        found += "".join(f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in folders)
        count = len(names) + len(folders)
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>{count}</KeyCount>{found}"
        self._send(200, (text + "</ListBucketResult>").encode(), "application/xml")

    def _google(self, bucket: str, name: str, query: dict[str, str]) -> None:
        if bucket != BUCKET or (name and name not in self.objects):
            self._send(404, b'{"error": {"code": 404, "message": "Not Found"}}', "application/json")
        elif query.get("alt") == "media":
            self._object(name)
        elif name:
            self._send(200, json.dumps(self._told(name)).encode(), "application/json")
        else:
            names, folders = self._below(query.get("prefix", ""), query.get("delimiter"))
            found = {"items": [self._told(n) for n in names], "prefixes": folders}
            self._send(200, json.dumps(found).encode(), "application/json")

    def _told(self, name: str) -> dict[str, Any]:
        stat = self.objects[name].stat()
        date = datetime.fromtimestamp(stat.st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        told: dict[str, Any] = {"kind": "storage#object", "bucket": BUCKET, "name": name, "generation": "1"}
        if name.endswith("/"):
            told["metadata"] = {"arrow/gcsfs": "directory"}
        return told | {
            "size": str(stat.st_size), "metageneration": "1", "updated": date, "timeCreated": date,
        }  # fmt: skip

    def _below(self, prefix: str, delimiter: str | None) -> tuple[list[str], list[str]]:
        names, folders = [], []
        for name in (n for n in self.objects if n.startswith(prefix)):
            head, cut, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            if not cut:
                names.append(name)
            elif prefix + head + cut not in folders:
                folders.append(prefix + head + cut)
        return names, folders

    def _object(self, name: str) -> None:
        if name not in self.objects:
            return self._send(404)
        data, wanted = self.objects[name].read_bytes(), self.headers.get("Range")
        if wanted is None:
            return self._send(200, data)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last) + 1 if last else len(data), len(data))
        return self._send(206, data[start:stop], span=f"bytes {start}-{stop - 1}/{len(data)}")

    def _send(
        self,
        status: int,
        data: bytes = b"",
        kind: str = "application/octet-stream",
        span: str = "",
        more: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", "Fri, 02 Jan 2026 03:04:05 GMT")
        for header, value in {**({"Content-Range": span} if span else {}), **(more or {})}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, Path(sys.argv[1]))) as server:
        print(f"127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()
