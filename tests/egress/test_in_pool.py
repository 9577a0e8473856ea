"""Outside APIs from inside functions: pool, worker and sandbox as real processes, the command line as an operator."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from storage.errors import InvalidArgument
from taskworker import AsyncClient, TaskWorker
from taskworker.cli.app import app_for
from taskworker.client.egress import EgressClient
from taskworker.errors import DeadlineExceeded, FunctionFailed
from taskworker.sandbox import Limits
from tests import forked
from tests.egress.servers import Received, Server, Writer, answer
from tests.functions.processes import USER, WAIT_S, FunctionPool


async def behave(request: Received, writer: Writer) -> None:
    """Tells what came, as JSON; or fails, or redirects."""
    if request.target == "/missing":
        answer(writer, b"no", status="404 Not Found")
    elif request.target == "/redirect":
        answer(writer, status="302 Found", headers="Location: /landed\r\n")
    elif request.target == "/latin":
        headers = "Content-Type: text/plain; charset=latin-1\r\nX-A: 1\r\nX-A: 2\r\n"
        answer(writer, "é".encode("latin-1"), headers=headers)
    elif request.target == "/large":
        answer(writer, bytes(6 << 20))
    elif len(request.body) > 1000:
        answer(writer, json.dumps({"headers": request.headers}).encode())
    elif request.target == "/away":
        answer(writer, status="302 Found", headers="Location: http://127.0.0.1:1/\r\n")
    else:
        told = {
            "method": request.method,
            "target": request.target,
            "headers": request.headers,
            "body": request.body.decode("latin-1"),
        }
        answer(writer, json.dumps(told).encode(), headers="Content-Type: application/json\r\n")


def refusals(ask: Callable[[float], object], values: Iterable[float]) -> list[str]:
    """Inside a function: how each value is refused."""
    told = []
    for value in values:
        try:
            ask(value)
        except Exception as error:
            told.append(f"{getattr(error, 'kind', '')}: {error}")
    return told


def command(pool: FunctionPool, *words: str) -> Any:
    """What ``taskworker egress`` prints."""
    asked = ["--json", "--pool", pool.address, "egress", *words]
    done = forked.run(asked, cwd=pool.directory, env=os.environ, timeout_s=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode() if words[0] == "log" else json.loads(done.stdout)


def test_functions_call_outside_apis_through_the_pool_alone(tmp_path: Path) -> None:
    with Server(behave) as server, FunctionPool(tmp_path, workers=2) as pool:
        worker = TaskWorker("program", node_pool_address=pool.address, volume=tmp_path / "program", capacity=10 << 30)
        url = f"http://127.0.0.1:{server.port}"

        @worker.function("report")
        def report(path: str) -> Any:
            response = worker.call_external_api(url + path, headers={"X-Report": "yes"})
            return response.json()

        @worker.function("explore")
        def explore() -> dict[str, Any]:
            posted = worker.call_external_api(
                url + "/p?a=1", method="post", params={"b": ["2", 3], "c": "ä &"}, json={"k": [1, None]}, timeout=5
            )
            form = worker.call_external_api(url, method="PUT", data={"x": "1 2", "y": "é"}).json()
            latin = worker.call_external_api(url + "/latin")
            missing = worker.call_external_api(url + "/missing")
            largest = worker.call_external_api(url, "POST", data=bytes(1 << 20))
            try:
                missing.raise_for_status()
            except Exception as error:
                failure = f"{type(error).__name__}: {error}"
            return {
                "no time": refusals(lambda timeout: worker.call_external_api(url, timeout=timeout), (0, -1, 0.0)),
                "posted": [posted.status_code, posted.status, posted.ok, posted.json() | {"headers": {}}],
                "form": [form["body"], form["headers"]["content-type"]],
                "latin": [latin.text, list(latin.content), latin.headers["x-a"], "CONTENT-TYPE" in latin.headers],
                "missing": [missing.ok, failure.removeprefix(f"HTTPStatusError: {url}")],
                "large": len(worker.call_external_api(url + "/large").content),
                "largest body": largest.json()["headers"]["content-length"],
                "redirected": worker.call_external_api(url + "/redirect").url.removeprefix(url),
                "not followed": worker.call_external_api(url + "/redirect", follow_redirects=False).status,
            }

        @worker.function("stray")
        def stray(where: str) -> str:
            kinds = []
            for target in where.split():
                try:
                    worker.call_external_api(target)
                except Exception as error:
                    kinds.append(str(getattr(error, "kind", error)))
            return " ".join(kinds)

        async def scenario() -> None:
            async with worker:
                await worker.start_server(port=0)
                await asyncio.to_thread(pool.await_workers, "stray", 1)
                async with AsyncClient(pool.address, timeout_s=60.0) as client:
                    with pytest.raises(FunctionFailed, match="may not call"):
                        await client.call("report", ["/x"], user_id=USER)
                    assert server.connections == 0
                    await asyncio.to_thread(allow_all)
                    told = await client.call("report", ["/x?y"], user_id=USER)
                    assert (told["target"], told["headers"]["x-report"]) == ("/x?y", "yes")
                    assert await client.call("explore", user_id=USER) == EXPLORED
                    wrong = [f"{url}/away", f"http://localhost:{server.port}/", "http://169.254.169.254/", "ftp://x/"]
                    kinds = await client.call("stray", [" ".join(wrong)], user_id=USER)
                    assert kinds.split() == ["PermissionDenied"] * 3 + ["InvalidArgument"]

        def allow_all() -> None:
            place = f"127.0.0.1:{server.port}"
            allowed = command(pool, "allow", "report", place, "--private")
            assert allowed == {"function": "report", "rule": place, "private": True, "changed": True}
            with EgressClient(pool.address) as client:
                client.allow("explore", place, private=True)
                client.allow("stray", f"{place}/away", private=True)

        asyncio.run(scenario())
        logged = [json.loads(line) for line in command(pool, "log", "report").splitlines()]
        assert [(one["host"], one["outcome"]) for one in logged] == [
            (f"127.0.0.1:{server.port}", "PermissionDenied"),
            (f"127.0.0.1:{server.port}", "ok"),
        ]
        pool.restart_pool()  # rules outlive it
        assert [rule["function"] for rule in command(pool, "ls")] == ["explore", "report", "stray"]
        assert command(pool, "deny", "report", f"127.0.0.1:{server.port}") == [
            {"function": "report", "rule": f"127.0.0.1:{server.port}", "private": True}
        ]
        assert [rule["function"] for rule in command(pool, "rm", "explore")] == ["explore"]
        with pytest.raises(AssertionError, match="no such rule"):
            command(pool, "rm", "explore")
        written = [json.loads(line) for line in (tmp_path / "pool" / "egress.log").read_text().splitlines()]
        assert written[0]["outcome"] == "PermissionDenied"
        assert {"function": "report", "user_id": USER, "status": 200, "outcome": "ok"}.items() <= written[1].items()


def test_a_call_at_its_limit_ends_what_it_asks_of_the_outside(tmp_path: Path) -> None:
    async def silence(_request: Received, _writer: Writer) -> None:
        await asyncio.sleep(3600)

    (tmp_path / "asking.py").write_text(
        "from taskworker.inside import worker\n\n\ndef ask(url):\n    return worker.call_external_api(url).status\n"
    )
    with Server(silence) as server, FunctionPool(tmp_path, workers=2) as pool, EgressClient(pool.address) as egress:
        pool.deploy("ask", "asking:ask", tmp_path, limits=Limits(wall_s=2.0))
        pool.await_workers("ask", 2)
        egress.allow("ask", f"127.0.0.1:{server.port}", private=True)
        with pytest.raises(DeadlineExceeded, match="ask"):
            pool.client.call("ask", [f"http://127.0.0.1:{server.port}"], user_id=USER)
        assert pool.await_status("ask", lambda status: status.running == 0).errors == 1
        give_up = time.monotonic() + WAIT_S
        while not (logged := list(egress.log("ask"))):
            assert time.monotonic() < give_up
            time.sleep(0.05)
        # Of itself, the request would have ended at the proxy's own limit.
        assert [one.outcome for one in logged] == ["CallAbandoned"]


EXPLORED = {
    "no time": [f"InvalidArgument: a timeout of {shown} s: it must be more than 0, or None" for shown in (0, -1, 0)],
    "posted": [
        200,
        200,
        True,
        {
            "method": "POST",
            "target": "/p?a=1&b=2&b=3&c=%C3%A4+%26",
            "headers": {},
            "body": '{"k": [1, null]}',
        },
    ],
    "form": ["x=1+2&y=%C3%A9", "application/x-www-form-urlencoded"],
    "latin": ["é", [0xE9], "1, 2", True],
    "missing": [False, "/missing answered 404: the request was at fault"],
    "large": 6 << 20,
    "largest body": str(1 << 20),
    "redirected": "/landed",
    "not followed": 302,
}


def test_the_log_is_followed(tmp_path: Path) -> None:
    from taskworker.apps.pool_server import PoolServer
    from taskworker.calls.capabilities import ApiRequest

    pool = PoolServer(tmp_path)
    address = f"127.0.0.1:{pool.start('127.0.0.1:0')}"
    try:
        with EgressClient(address) as client:
            lines = client.log("f", follow=True)
            for number in range(3):
                with pytest.raises(InvalidArgument):
                    pool.capabilities.egress.request(
                        "f" if number != 1 else "g", "ann", ApiRequest("GET", f"ftp://x{number}/")
                    )
            assert [next(lines).outcome, next(lines).outcome] == ["InvalidArgument"] * 2
            assert len([*client.log()]) == 3
    finally:
        pool.stop(0)


@pytest.mark.parametrize("words", [[], ["allow"], ["deny"], ["rm"], ["ls"], ["log"]])
def test_commands_explain_themselves(words: list[str]) -> None:
    shown = CliRunner().invoke(app_for(["egress"]), ["egress", *words, "--help"])
    assert shown.exit_code == 0, shown.exception
    assert not words or f"taskworker egress {words[0]}" in shown.output


def test_outside_of_a_function_it_says_so(tmp_path: Path) -> None:
    worker = TaskWorker("alone", store=tmp_path)
    with pytest.raises(InvalidArgument, match="inside a function"):
        worker.call_external_api("https://api.example/")
