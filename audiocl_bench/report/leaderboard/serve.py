"""Show a built leaderboard in the browser of this machine."""

from __future__ import annotations

import errno
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from audiocl_bench.errors import ResultsError
from audiocl_bench.report.leaderboard.site import MARK

HOST = "127.0.0.1"
"""Only this machine is served: to publish a leaderboard, copy its folder to any web server."""

_POLICY = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'"


class _Handler(SimpleHTTPRequestHandler):
    """Serves files of one folder, quietly, and lets pages load nothing from elsewhere."""

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def list_directory(self, path: Any) -> None:
        self.send_error(404, "No page here")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the address was printed, and a page is many files."""


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """Return a server of a built leaderboard on 127.0.0.1, bound and ready for `serve_forever`.

    Args:
        folder: where `site.build` wrote.
        port: TCP port; 0 takes a free one (`server_address[1]` tells which).

    Raises:
        ResultsError: `folder` holds no leaderboard, or the port cannot be used.
    """
    if not (folder / MARK).is_file():
        raise ResultsError(f"{folder} holds no leaderboard: make one with audiocl leaderboard build --out {folder}.")
    try:
        made = ThreadingHTTPServer((HOST, port), partial(_Handler, directory=str(folder)))
    except (OSError, OverflowError) as cause:
        reason = "is in use" if getattr(cause, "errno", 0) == errno.EADDRINUSE else f"cannot be used ({cause})"
        raise ResultsError(f"port {port} of {HOST} {reason}: give another with --port, or 0 for a free one.") from cause
    made.daemon_threads = True
    return made
