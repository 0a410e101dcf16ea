"""A folder served as an object store: the reading half of S3's and of Google Cloud Storage's protocols."""

import http.server
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "bucket"
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
        self.objects = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
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

    def _told(self, name: str) -> dict[str, str]:
        size = str(self.objects[name].stat().st_size)
        told = {"kind": "storage#object", "bucket": BUCKET, "name": name, "size": size, "generation": "1"}
        return told | {"metageneration": "1", "updated": DATE, "timeCreated": DATE}

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
        self, status: int, data: bytes = b"", kind: str = "application/octet-stream", span: str = ""
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", "Fri, 02 Jan 2026 03:04:05 GMT")
        if span:
            self.send_header("Content-Range", span)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, Path(sys.argv[1]))) as server:
        print(f"127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()
