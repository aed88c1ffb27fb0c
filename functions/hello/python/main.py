"""Greets over HTTP/1.1. Standard library only."""

import json
import os
import signal
import socketserver
import sys
from http.server import BaseHTTPRequestHandler


class Server(socketserver.ThreadingTCPServer):
    # Not http.server.HTTPServer: that asks DNS for its own name when it starts,
    # which takes seconds where there is no DNS.
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    # Headers and body leave in one packet.
    wbufsize = -1

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path == "/":
            self.text(200, "Hello, %s!\n" % (os.environ.get("TARGET") or "World"))
        elif path == "/healthz":
            self.text(200, "ok\n")
        elif path == "/env":
            body = json.dumps(dict(os.environ)).encode()
            self.answer(200, "application/json", body)
        else:
            self.text(404, "not found\n")

    def do_POST(self):
        if self.path.partition("?")[0] != "/echo":
            self.close_connection = True
            self.text(404, "not found\n")
            return
        body = self.body()
        if body is not None:
            self.answer(200, self.headers.get("Content-Type", "application/octet-stream"), body)

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while True:
                try:
                    size = int(self.rfile.readline(1024).partition(b";")[0], 16)
                except ValueError:
                    return self.bad()
                if size == 0:
                    while self.rfile.readline(65536).strip():
                        pass  # trailers
                    return b"".join(parts)
                parts.append(self.rfile.read(size))
                self.rfile.readline(1024)
        try:
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        except ValueError:
            return self.bad()

    def bad(self):
        self.close_connection = True
        self.text(400, "bad request\n")

    def text(self, status, text):
        self.answer(status, "text/plain; charset=utf-8", text.encode())

    def answer(self, status, content_type, body):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass  # the gateway logs requests


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    port = int(os.environ.get("PORT") or 8080)
    with Server(("0.0.0.0", port), Handler) as server:
        print("listening on 0.0.0.0:%d" % port, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
