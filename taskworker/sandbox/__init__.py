"""Runs calls of user code in processes that the kernel confines. Independent of gRPC and of the store."""

from taskworker.sandbox.answering import Asked
from taskworker.sandbox.call import SandboxCall
from taskworker.sandbox.errors import (
    CallCancelled,
    CallCrashed,
    CallDeadline,
    CallFailed,
    CallRefused,
    FunctionBroken,
    LimitExceeded,
    ProtocolViolation,
    SandboxError,
    SandboxFull,
    SandboxUnavailable,
)
from taskworker.sandbox.host import SandboxHost
from taskworker.sandbox.image import FunctionImage, Keep, Limits, WarmView

__all__ = [
    "Asked",
    "CallCancelled",
    "CallCrashed",
    "CallDeadline",
    "CallFailed",
    "CallRefused",
    "FunctionBroken",
    "FunctionImage",
    "Keep",
    "LimitExceeded",
    "Limits",
    "ProtocolViolation",
    "SandboxCall",
    "SandboxError",
    "SandboxFull",
    "SandboxHost",
    "SandboxUnavailable",
    "WarmView",
]
