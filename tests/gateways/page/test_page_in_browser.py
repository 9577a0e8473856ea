"""The page in a real browser: every view, live, by keyboard-reachable controls, without faults that axe finds.

It needs Chromium (``apt-get install chromium``), and Playwright and axe-core, which are in the extra ``gateways-dev``.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from taskworker.client.users import UserClient
from taskworker.gateways.http_server import HttpServer
from taskworker.gateways.page.app import PageApp
from tests.functions.processes import FunctionPool

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = [
    *([] if CHROMIUM else ["Chromium (apt-get install chromium)"]),
    *(
        f"{name} (pip install 'taskworker[gateways-dev]')"
        for name in ("playwright", "axe_playwright_python")
        if find_spec(name) is None
    ),
]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no browser tries the page without {', '.join(MISSING)}")
WAIT_MS = 60_000
SIZES = ((390, 844), (1280, 800), (2560, 1440))
FUNCTION = """
def shout(text: str, times: int = 1) -> str:
    print("shouting", text)
    return (text.upper() + "! ") * times
"""


@pytest.fixture(scope="module")
def own_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FunctionPool]:
    """A pool whose workers may be killed."""
    directory = tmp_path_factory.mktemp("browser-pool")
    with FunctionPool(directory, workers=3, pool_options=["--grace", "3600"]) as pool:
        (directory / "shouting.py").write_text(FUNCTION)
        pool.deploy("shout", "shouting:shout", directory)
        pool.await_workers("shout", 3)
        yield pool


@pytest.fixture(scope="module")
def url(own_pool: FunctionPool) -> Iterator[str]:
    app = PageApp(own_pool.address)
    server = HttpServer(app, "127.0.0.1:0", on_stop=app.stop)
    thread = threading.Thread(target=server.run, name="page")
    thread.start()
    yield f"http://{server.address}"
    server.stop()
    thread.join(30)


@pytest.fixture(scope="module")
def token(own_pool: FunctionPool) -> str:
    with UserClient(own_pool.address) as users:
        users.add("olga", "operator")
        users.add("bob")
        return users.create_token("olga")[0]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # A sandbox of its own is not to be had for root, as which tests may run.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


class Window:
    """A window of a browser, which notes what must not happen in any."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.url = url
        self.context = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
        self.context.set_default_timeout(WAIT_MS)
        self.page = self.context.new_page()
        self.hosts: set[str | None] = set()
        self.problems: list[str] = []
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda message: self.problems.append(message.text) if message.type == "error" else None)

    def sign_in(self, token: str) -> None:
        self.page.goto(self.url)
        self.page.get_by_label("Token").fill(token)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.get_by_role("navigation", name="Sections").wait_for()

    def mark(self) -> None:
        """Leave something that is lost when the page is loaded anew."""
        self.page.evaluate("window.marked = true")

    def is_marked(self) -> bool:
        return bool(self.page.evaluate("window.marked === true"))

    def faults(self) -> list[str]:
        """What axe finds to be serious, in both colour schemes."""
        from axe_playwright_python.sync_playwright import Axe

        found = []
        for scheme in ("light", "dark"):
            self.page.emulate_media(color_scheme=scheme)
            for fault in Axe().run(self.page).response["violations"]:
                if fault["impact"] in ("serious", "critical"):
                    places = [node["html"][:200] for node in fault["nodes"]]
                    found.append(f"{self.page.url} ({scheme}): {fault['id']}: {places}")
        return found

    def close(self) -> None:
        self.context.close()


@pytest.fixture
def window(chromium: Any, url: str, token: str) -> Iterator[Window]:
    one = Window(chromium, url)
    one.sign_in(token)
    yield one
    one.close()
    assert one.hosts == {"127.0.0.1"}
    assert one.problems == []


def test_the_page_in_use(window: Window, own_pool: FunctionPool, tmp_path: Path) -> None:
    page = window.page
    page.get_by_text("all files survive").wait_for()
    faults = window.faults()

    def visit(name: str) -> None:
        page.get_by_role("navigation", name="Sections").get_by_role("link", name=name, exact=True).click()
        page.locator("nav [aria-current]").get_by_text(name, exact=True).wait_for()

    for section in ("Functions", "Secrets", "Users", "Audit", "Files"):
        visit(section)
        faults += window.faults()

    # A file is uploaded, twice, and shown without loading the page anew.
    window.mark()
    notes = tmp_path / "notes.txt"
    for place, content in enumerate(("first\n", "second\n")):
        notes.write_text(content)
        page.get_by_label("Upload", exact=True).set_input_files(notes)
        page.get_by_text("is stored", exact=True).nth(place).wait_for()
    page.get_by_role("table").get_by_role("link", name="notes.txt", exact=True).wait_for()
    assert window.is_marked()

    # It is restored to its former version, and shared.
    page.get_by_role("table").get_by_role("link", name="notes.txt", exact=True).click()
    page.get_by_role("button", name="Compare").wait_for()
    faults += window.faults()
    window.mark()
    page.get_by_role("button", name="Restore").click()
    page.get_by_text("has the content of").first.wait_for()
    page.get_by_label("User").fill("bob")
    page.get_by_role("button", name="Share", exact=True).click()
    page.get_by_text("bob may read it").wait_for()
    assert window.is_marked()
    faults += window.faults()
    head = own_pool.client.find("notes.txt", user_id="olga")
    assert head is not None
    assert own_pool.client.get(head.file_id, user_id="olga") == b"first\n"
    with page.expect_download() as download:
        page.get_by_role("link", name="Download", exact=True).click()
    assert Path(download.value.path()).read_bytes() == b"first\n"
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("heading", name="What differs").wait_for()
    faults += window.faults()

    # A function is called, and its log is shown.
    visit("Functions")
    page.get_by_role("link", name="shout").click()
    page.get_by_label("Arguments").fill("hi\ntimes=2")
    window.mark()
    page.get_by_role("button", name="Call", exact=True).click()
    page.get_by_text("HI! HI!").first.wait_for()
    page.get_by_text("shouting hi").wait_for()
    assert window.is_marked()
    faults += window.faults()

    # A worker is killed, and its state is seen to change.
    visit("Overview")
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="w2", exact=True))
    row.get_by_text("alive", exact=True).wait_for()
    window.mark()
    own_pool.workers.pop("w2").kill()
    row.get_by_text("alive", exact=True).wait_for(state="detached")
    page.get_by_text("1 worker is away").first.wait_for()
    assert window.is_marked()
    faults += window.faults()
    row.get_by_role("link").click()
    page.get_by_role("heading", name="w2").wait_for()
    faults += window.faults()
    assert faults == []


def test_it_fits_windows_of_all_sizes(window: Window) -> None:
    page = window.page
    for width, height in SIZES:
        page.set_viewport_size({"width": width, "height": height})
        for path in ("/", "/files", "/functions", "/secrets", "/users", "/user?name=olga", "/audit"):
            page.goto(window.url + path)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (path, width)


def test_it_is_used_by_keyboard(window: Window) -> None:
    page = window.page
    page.goto(f"{window.url}/files")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    window.mark()
    page.keyboard.press("Enter")
    assert window.is_marked()
    assert page.evaluate("document.activeElement.id") == "main"
    focusable = page.locator("main :is(a, button, input:not([type=hidden]), select, summary)").count()
    names = set()
    for _ in range(focusable):
        page.keyboard.press("Tab")
        names.add(page.evaluate("document.activeElement.outerHTML"))
        assert page.evaluate("document.activeElement.matches(':focus-visible')")
    assert len(names) > 3


def test_without_scripts_it_works_as_well(chromium: Any, url: str, token: str) -> None:
    one = Window(chromium, url, java_script_enabled=False)
    one.sign_in(token)
    one.page.get_by_text("all files survive").or_(one.page.get_by_text("is away")).first.wait_for()
    one.page.get_by_role("link", name="Functions").click()
    one.page.get_by_role("link", name="shout").click()
    one.page.get_by_label("Arguments").fill("hi")
    one.page.get_by_role("button", name="Call", exact=True).click()
    one.page.get_by_text("HI!").first.wait_for()
    one.page.get_by_role("button", name="Sign out").click()
    one.page.get_by_label("Token").wait_for()
    one.close()
