"""Answers with everything that it takes for random. It is what an ordinary
program does, and knows nothing of snapshots."""

import json
import os
import random
import secrets
import socketserver
import ssl
import tempfile
import uuid
from http.server import BaseHTTPRequestHandler

KEYS = "/tmp/keys"

server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
server_side.load_cert_chain("cert.pem", "key.pem")
client_side = ssl.create_default_context()
client_side.check_hostname = False
client_side.verify_mode = ssl.CERT_NONE
client_side.keylog_filename = KEYS


def handshake(add):
    """Talk TLS with oneself."""
    open(KEYS, "w").close()
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    client = client_side.wrap_bio(to_client, to_server)
    waiting = [client, server]
    while waiting:
        side = waiting.pop(0)
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            waiting.append(side)
    with open(KEYS) as f:
        for line in f:
            fields = line.split()
            if len(fields) == 3 and not line.startswith("#"):
                add("tls " + fields[0], fields[2])
                add("tls client random " + fields[0], fields[1])


def collect(add):
    add("os.urandom", os.urandom(16).hex())
    add("secrets", secrets.token_hex(16))
    add("ssl.RAND_bytes", ssl.RAND_bytes(16).hex())
    add("random.random", repr(random.random()))
    add("random.getrandbits", str(random.getrandbits(64)))
    add("random.choices", "".join(random.choices("abcdefghijklmnop", k=20)))
    add("uuid1", str(uuid.uuid1()))
    add("uuid1's node and clock", "%x %x" % (uuid.uuid1().node, uuid.uuid1().clock_seq))
    add("uuid4", str(uuid.uuid4()))
    with tempfile.TemporaryDirectory() as name:
        add("tempfile.TemporaryDirectory", name)
    with tempfile.NamedTemporaryFile() as f:
        add("tempfile.NamedTemporaryFile", f.name)
    handshake(add)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        values = {}
        for _ in range(3):
            collect(lambda name, v: values.setdefault(name, []).append(v))
        body = json.dumps({k: list(dict.fromkeys(v)) for k, v in values.items()}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


Server(("0.0.0.0", 8080), Handler).serve_forever()
