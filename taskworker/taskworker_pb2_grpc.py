"""Stubs and servicers of the public contract; generated, see ``taskworker.protos``."""

from taskworker.protos.taskworker_pb2_grpc import *  # noqa: F403
