"""The messages of the public contract; generated, see ``taskworker.protos``."""

from taskworker.protos.taskworker_pb2 import *  # noqa: F403
from taskworker.protos.taskworker_pb2 import DESCRIPTOR as DESCRIPTOR
