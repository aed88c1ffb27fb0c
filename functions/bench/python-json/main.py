"""Answers with JSON that it has worked on. Standard library only."""

import json
import os
import signal
import socketserver
import sys
from http.server import BaseHTTPRequestHandler


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self):
        orders = [{"id": i, "items": [{"sku": "s%d" % j, "price": i * j} for j in range(5)]} for i in range(20)]
        orders = json.loads(json.dumps(orders))
        total = sum(item["price"] for order in orders for item in order["items"])
        body = json.dumps({"orders": len(orders), "total": total}).encode()
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
