"""What gets past guards written in Python: here there are none, and it must not matter."""

from __future__ import annotations

import builtins
import codecs
import ctypes
import gc
import importlib
import marshal
import pickle
import sys
import types
from pathlib import Path
from typing import Any

from tests.sandbox.attacks.corpus import Channel, attack


def _loaded(name: str) -> types.ModuleType:
    return importlib.import_module(name)


@attack
def subclasses_of_object(_: Channel) -> object:
    everything: list[Any] = object.__subclasses__()
    loaders = [found for found in everything if found.__name__ == "_wrap_close"]
    system = loaders[0].__init__.__globals__["popen"]
    return system("cat /etc/hostname").read()


@attack
def frames_of_callers(_: Channel) -> object:
    frame = sys._getframe()
    seen = []
    while frame.f_back is not None:
        frame = frame.f_back
        seen += [name for name, value in frame.f_locals.items() if isinstance(value, bytes) and b"SECRET" in value]
    return seen


@attack
def frames_of_a_traceback(_: Channel) -> object:
    try:
        raise ValueError
    except ValueError as error:
        module = error.__traceback__.tb_frame.f_globals["__builtins__"]  # type: ignore[union-attr]
    opened = module["open"] if isinstance(module, dict) else module.open
    return opened("/etc/hostname").read()


@attack
def objects_of_the_collector(_: Channel) -> object:
    return [o for o in gc.get_objects() if isinstance(o, bytes) and b"another caller's" in o]


@attack
def secrets_in_the_heap(_: Channel) -> object:
    """Requests of other calls are in no memory that this one has."""
    gc.unfreeze()
    return [o for o in gc.get_objects() if isinstance(o, dict) and "INNOCENT-REQUEST" in o]


@attack
def codecs_that_open_files(_: Channel) -> object:
    return codecs.open("/etc/hostname", encoding="latin-1").read()


@attack
def import_everything(_: Channel) -> object:
    names = ("taskworker.services", "taskworker.pool", "storage", "grpc", "lmdb", "pytest", "hypothesis", "psutil")
    found = []
    for name in names:
        try:
            found.append(_loaded(name).__name__)
        except ImportError:
            continue
    return found


@attack
def builtins_changed(_: Channel) -> object:
    """Changes of the interpreter are this call's own; the next sees none."""
    left = getattr(builtins, "left_by_a_call", None)
    builtins.left_by_a_call = "state"  # type: ignore[attr-defined]
    return left


@attack
def builtins_changed_again(channel: Channel) -> object:
    return builtins_changed(channel)


@attack
def modules_changed(_: Channel) -> object:
    import json

    left = getattr(json, "left_by_a_call", None)
    json.left_by_a_call = "state"  # type: ignore[attr-defined]
    return left


@attack
def modules_changed_again(channel: Channel) -> object:
    return modules_changed(channel)


@attack
def code_objects(_: Channel) -> object:
    def harmless() -> object:
        return None

    code = compile("import os; result = os.listdir('/proc')", "made", "exec")
    space: dict[str, object] = {}
    exec(marshal.loads(marshal.dumps(code)), space)
    harmless.__code__ = harmless.__code__.replace(co_name="other")
    return space["result"]


@attack
def pickled_commands(_: Channel) -> object:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            import os

            return os.system, ("touch /tmp/out",)

    status = pickle.loads(pickle.dumps(Bomb()))
    return status == 0


@attack
def loader_from_elsewhere(_: Channel) -> object:
    from importlib.machinery import ExtensionFileLoader, ModuleSpec

    Path("x.so").write_bytes(b"\x7fELF" + bytes(100))
    loader = ExtensionFileLoader("x", "x.so")
    return loader.create_module(ModuleSpec("x", loader, origin="x.so"))


@attack
def memory_by_address(_: Channel) -> object:
    """Own memory may be changed at will: it is gone with the call."""
    number = 257
    ctypes.memset(id(number) + 24, 0, 1)
    return None


@attack
def audit_and_trace_hooks(_: Channel) -> object:
    sys.setprofile(lambda *_: None)
    sys.setprofile(None)
    sys.addaudithook(lambda *_: None)
    return None


@attack
def exit_handlers(_: Channel) -> object:
    """What is registered for the interpreter's end is not run: a call's process is killed."""
    import atexit
    import os

    atexit.register(lambda: os.write(1, b"after the end"))
    return None


@attack
def replace_the_program(_: Channel) -> object:
    """The call's own code is in reach, too; the worker trusts nothing that it says."""
    call = sys.modules["taskworker.sandbox.inside.call"]
    vars(call)["_flush"] = lambda: None
    return None
