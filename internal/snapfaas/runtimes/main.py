"""Skep's Python runtime for SnapFaaS's tools: it runs in the guest.

The host connects to PORT (the environment may change it, for tests). Messages in both directions are JSON behind their
length, four bytes, the highest first. The runtime speaks first and says at
which snapshot point it is: "runtime-ready" without an app, "app-ready" with one.
"""
import importlib
import json
import os
import socket
import struct
import sys
import traceback

PORT = int(os.environ.get("SKEP_RUNTIME_PORT", "1234"))
APP = os.environ.get("SKEP_RUNTIME_APP", "/srv")
LIMIT = 16 << 20  # bytes of a message
handle = None


def load():
    """Imports the app: the module workload, with its packages beside it."""
    global handle
    sys.path[:0] = [APP, APP + "/package"]
    importlib.invalidate_caches()
    handle = importlib.import_module("workload").handle


def reseed():
    """Clones of a snapshot must not share random numbers."""
    if "random" in sys.modules:
        sys.modules["random"].seed()
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()


def send(conn, message):
    data = json.dumps(message, allow_nan=False).encode()
    if len(data) > LIMIT:
        data = json.dumps({"type": "error", "error": "the response is larger than %d bytes" % LIMIT}).encode()
    conn.sendall(struct.pack(">I", len(data)) + data)


def receive(stream):
    """Returns the next message, or None at the end."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    size = struct.unpack(">I", head)[0]
    if size > LIMIT:
        raise ValueError("a message of %d bytes" % size)
    data = stream.read(size)
    return json.loads(data) if len(data) == size else None


def answer(message):
    kind = message.get("type")
    try:
        if kind == "load-app":
            if handle is None:
                load()
            return {"type": "app-ready"}
        if kind == "request":
            if handle is None:
                raise RuntimeError("no app is loaded")
            return {"type": "response", "payload": handle(message.get("payload"))}
        raise ValueError("unknown message %r" % kind)
    except BaseException:
        return {"type": "error", "error": traceback.format_exc()[-8192:]}


def serve(listener):
    while True:
        conn, _ = listener.accept()
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            reseed()
            with conn, conn.makefile("rb") as stream:
                send(conn, {"type": "app-ready" if handle else "runtime-ready", "runtime": "python3"})
                while True:
                    message = receive(stream)
                    if message is None:
                        break
                    reply = answer(message)
                    try:
                        send(conn, reply)
                    except (TypeError, ValueError):  # not JSON
                        send(conn, {"type": "error", "error": traceback.format_exc()[-8192:]})
        except (OSError, ValueError) as e:
            print("connection: %s" % e, file=sys.stderr)


def main():
    if any(n.split(".")[0] == "workload" for n in (os.listdir(APP) if os.path.isdir(APP) else [])):
        load()  # the app is part of the root file system
    listener = socket.create_server(("0.0.0.0", PORT), backlog=8)
    serve(listener)


main()
