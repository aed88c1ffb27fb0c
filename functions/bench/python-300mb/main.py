"""Looks rows up in a table that it made at its start: about 300 MB in memory."""

import json
import os
import signal
import socketserver
import sys
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

import numpy

# What a model's weights would be: made once, slowly, then read here and there.
TABLE = numpy.random.default_rng(1).random((4096, 8192))
# The same by pages of 4 KiB, 65536 of them.
PAGES = TABLE.reshape(-1, 512)


def lookups(n):
    """Reads the first of n pages that lie all over the table, all different:
    what a recommender does with its embeddings."""
    at = numpy.arange(n) * 40503 % len(PAGES)
    return float(PAGES[at, :8].sum())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self):
        n = int(parse_qs(urlsplit(self.path).query).get("lookups", ["0"])[0])
        row = TABLE[1234] + TABLE[4000]
        body = json.dumps({"sum": float(row.sum()) + lookups(n)}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    port = int(os.environ.get("PORT") or 8080)
    with Server(("0.0.0.0", port), Handler) as server:
        print("listening on 0.0.0.0:%d" % port, flush=True)
        server.serve_forever()
