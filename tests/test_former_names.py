"""Modules that were moved are still found by their former names, and are the same modules."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from taskworker.former_names import present_name

FORMER = [
    "taskworker.store_pb2",
    "taskworker.pool_pb2_grpc",
    "taskworker.egress.rules",
    "taskworker.dns.names",
    "taskworker.secrets.store",
    "taskworker.functions.bundles",
    "taskworker.functions.host",
    "taskworker.functions.redaction",
    "taskworker.functions.spec",
    "taskworker.services.server",
    "taskworker.volume_worker",
    "taskworker.wire.shards",
    "taskworker.wire.status",
]


@pytest.mark.parametrize("name", FORMER)
def test_a_former_name_gives_the_module_itself(name: str) -> None:
    script = f"import sys, {name}; print(sys.modules[{name!r}].__name__, {name}.__spec__.name)"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert shown == [present_name(name)] * 2


def test_a_former_package_loads_none_of_its_modules_twice() -> None:
    script = (
        "import taskworker.egress, taskworker.egress.rules as former, taskworker.outbound.egress.rules as present\n"
        "from taskworker.egress.rules import RuleBook\n"
        "assert former is present and RuleBook is present.RuleBook"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_names_that_never_were_are_not_found() -> None:
    script = "import taskworker.wire.nothing_of_the_kind"
    refused = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError: No module named 'taskworker.rpc.nothing_of_the_kind'" in refused.stderr


def test_the_public_contract_is_at_the_root() -> None:
    from taskworker import taskworker_pb2, taskworker_pb2_grpc
    from taskworker.protos import taskworker_pb2 as generated

    assert taskworker_pb2.PushRequest is generated.PushRequest
    assert taskworker_pb2.DESCRIPTOR.package == "taskworker"
    assert taskworker_pb2_grpc.FileServiceStub is not None


def test_messages_survive_pickling() -> None:
    from taskworker.protos.store_pb2 import DescribeRequest
    from taskworker.protos.taskworker_pb2 import PushRequest

    request = PushRequest(filename="报告.txt", file_data=b"x")
    assert pickle.loads(pickle.dumps(request)) == request
    assert pickle.loads(pickle.dumps(DescribeRequest())) == DescribeRequest()
