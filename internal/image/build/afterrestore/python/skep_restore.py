"""After a restore: random numbers of this process's own.

A process that was restored from a snapshot goes on with the generators of all
its siblings. This module, which every interpreter of the image imports at its
start, seeds them again. It notices a restore by the machine ID, of which each
restored sandbox has its own before it gets any work, and looks at that as
often as a connection is accepted: connections do not survive a snapshot, so
the first request after a restore comes over a new one.

What is safe by itself: os.urandom, secrets, uuid4 and SystemRandom ask the
kernel each time, and so does OpenSSL as this image configures it. A generator
that the program has seeded with a value of its own is left alone, and so are
objects that it made, such as random.Random(): after(f) is for them.
"""

import os
import sys

_MACHINE_ID = "/etc/machine-id"
_FLAGS = os.O_RDONLY | os.O_CLOEXEC

_seeded = set()  # modules whose generator the program has seeded itself
_after = []  # the program's own functions


def _machine():
    try:
        fd = os.open(_MACHINE_ID, _FLAGS)
    except OSError:
        return b""
    try:
        return os.read(fd, 64)
    except OSError:
        return b""
    finally:
        os.close(fd)


_last = _machine()


def after(function):
    """Have function called, without arguments, after each restore. A decorator."""
    _after.append(function)
    return function


def check():
    """Seed everything again if this process was restored since the last check.

    For servers that accept connections without Python's socket module.
    """
    global _last
    now = _machine()
    if now == _last:
        return
    reseed()
    _last = now


def reseed():
    """Seed everything again."""
    for name, function in (("_ssl", _ssl), ("random", _random), ("numpy.random", _random), ("uuid", _uuid)):
        module = sys.modules.get(name)
        if module is not None and name not in _seeded:
            try:
                function(module)
            except Exception as e:  # a module of another version must not fail a request
                print("skep_restore: %s: %r" % (name, e), file=sys.stderr)
    for function in _after:
        try:
            function()
        except Exception:
            sys.excepthook(*sys.exc_info())


def _ssl(module):
    # For a process that has a configuration of OpenSSL of its own. The first
    # time OpenSSL loads what it makes random numbers with, some milliseconds'
    # work: it is done when the module is imported, not after each restore.
    module.RAND_add(os.urandom(48), 48.0)


def _random(module):
    module.seed.__wrapped__()


def _uuid(module):
    # uuid1 is made of time and network address, which clones share. A random
    # node instead of the address: RFC 9562, section 6.10.
    module._generate_time_safe = None
    module._node = int.from_bytes(os.urandom(6), "big") | 1 << 40
    module._last_timestamp = None


def _watch_seed(name):
    """Note whether the program seeds the module's generator itself."""

    def patch(module):
        def watch(function, explicit):
            def wrapper(*args, **kwargs):
                result = function(*args, **kwargs)
                if explicit(args, kwargs):
                    _seeded.add(name)
                else:
                    _seeded.discard(name)
                return result

            wrapper.__name__ = wrapper.__qualname__ = function.__name__
            wrapper.__doc__ = function.__doc__
            wrapper.__wrapped__ = function
            return wrapper

        def given(args, kwargs):
            return any(a is not None for a in args[:1]) or any(kwargs.get(k) is not None for k in ("a", "seed"))

        module.seed = watch(module.seed, given)
        for state in ("setstate", "set_state"):
            if hasattr(module, state):
                setattr(module, state, watch(getattr(module, state), lambda *_: True))

    return patch


def _patch_socket(module):
    accept = module.socket.accept

    def checked(self):
        connection = accept(self)
        check()
        return connection

    checked.__name__, checked.__qualname__ = accept.__name__, accept.__qualname__
    checked.__doc__ = accept.__doc__
    checked.__wrapped__ = accept
    module.socket.accept = checked


def _patch_tempfile(module):
    from random import SystemRandom

    module._Random = SystemRandom


_patches = {
    "_ssl": _ssl,
    "socket": _patch_socket,
    "tempfile": _patch_tempfile,
    "random": _watch_seed("random"),
    "numpy.random": _watch_seed("numpy.random"),
}


class _Finder:
    """Patches modules right after their first import: imports are slow, and
    most programs need few of these."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in _patches:
            return None
        patch = _patches.pop(name)
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if finder is _Finder or find is None:
                continue
            spec = find(name, path, target)
            if spec is not None:
                break
        else:
            return None
        if isinstance(spec.loader, type) or getattr(spec.loader, "exec_module", None) is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            try:
                patch(module)
            except Exception as e:
                print("skep_restore: %s: %r" % (name, e), file=sys.stderr)

        spec.loader.exec_module = exec_module
        return spec


for _name in [n for n in _patches if n in sys.modules]:
    _patches.pop(_name)(sys.modules[_name])
sys.meta_path.insert(0, _Finder)
