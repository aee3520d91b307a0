"""Files that a service hands out by links: which links are followed, and what a damaged adapter says."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError

import pytest

from kitchen_resources.errors import BackendError
from kitchen_resources.training.remote.adapters import fetch, write_adapter


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "secret").write_text("a secret of this machine")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            leads_on = {"/file": f"file://{tmp_path / 'secret'}", "/on": "/bytes", "/away": "http://192.0.2.1/x"}
            self.send_response(302 if self.path in leads_on else 200)
            if self.path in leads_on:
                self.send_header("Location", leads_on[self.path])
            self.end_headers()
            self.wfile.write(b"" if self.path in leads_on else b"bytes")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{listener.server_address[1]}"
        listener.shutdown()


def test_a_link_is_followed_where_it_leads_to_a_server(server: str) -> None:
    assert fetch(f"{server}/bytes", 10) == b"bytes"
    assert fetch(f"{server}/on", 10) == b"bytes"


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x", "http://192.0.2.1/x"])
def test_and_not_to_a_file_or_without_encryption(url: str) -> None:
    with pytest.raises(BackendError, match="a link of the service leads to"):
        fetch(url, 10)


@pytest.mark.parametrize("path", ["file", "away"])
def test_also_not_by_a_detour(server: str, path: str) -> None:
    # To a file urllib itself follows none.
    with pytest.raises((BackendError, HTTPError), match=r"a link of the service leads to|is not allowed"):
        fetch(f"{server}/{path}", 10)


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"adapter_config.json": b"{}"}, "has no adapter_model.safetensors"),
        ({"adapter_model.safetensors": b"<html>", "adapter_config.json": b"{}"}, "can't be read"),
        (
            {"adapter_model.safetensors": (2).to_bytes(8, "little") + b"{}", "adapter_config.json": b"<"},
            "can't be read",
        ),
    ],
)
def test_an_adapter_that_is_none_is_refused(tmp_path: Path, files: dict[str, bytes], what: str) -> None:
    with pytest.raises(BackendError, match=what):
        write_adapter(files, tmp_path, where="backend any")
