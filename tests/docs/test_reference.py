"""The reference says all that there is: every command, option, public name, error, variable; and nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import storage
import taskworker.inside
from docs_build import api, commands, errors, links
from docs_build.markdown import escaped
from docs_build.site import PARTS, PLACE, filled
from storage.errors import ConflictError, FileNotFound, ShardsUnavailable, UsedAfterFork
from taskworker.cli.app import app_for

DOCS = links.ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
SHOWN = {uri: filled(text, uri) for uri, text in PAGES.items()}
SOURCES = [path for package in ("storage", "taskworker") for path in sorted((links.ROOT / package).rglob("*.py"))]
CLI = "\n".join(text for uri, text in SHOWN.items() if uri.startswith("reference/cli/"))


def names_declared() -> Iterator[tuple[str, ...]]:
    """The commands as the program declares them, without the help of what makes the reference."""
    app = app_for(())
    for one in app.registered_commands:
        assert one.callback is not None
        yield (one.name or one.callback.__name__.replace("_", "-"),)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        for one in group.typer_instance.registered_commands:
            assert one.callback is not None
            yield (str(group.name), one.name or one.callback.__name__.replace("_", "-"))


def test_every_command_has_one_section() -> None:
    declared = [" ".join(["taskworker", *names]) for names in names_declared()]
    assert sorted(re.findall(r"^## (taskworker .+)$", CLI, re.MULTILINE)) == sorted(declared)


@pytest.mark.parametrize("one", commands.commands(), ids=lambda one: str(one.path))
def test_every_option_is_told(one: commands.Described) -> None:
    section = commands.section(one)
    assert section in CLI
    for option in one.options:
        assert option.opts[-1] in section
        assert option.help, f"{one.path} {option.opts} has no help"


def test_options_are_told_once_with_what_they_take_and_their_default() -> None:
    grace = next(line for line in commands.options_of("taskworker pool").splitlines() if "`--grace SECONDS`" in line)
    assert "How long to wait for a silent worker" in grace
    assert grace.endswith("| `30` |")
    assert "| `--json` | Print results as JSON. |  |" in commands.common_options()
    assert "--supervised" not in CLI


def test_every_public_name_has_a_place() -> None:
    told = set(re.findall(r"^::: (\S+)$", "\n".join(SHOWN.values()), re.MULTILINE))
    public = {f"storage.{name}" for name in storage.__all__} | {f"taskworker.{name}" for name in taskworker.__all__}
    public |= {f"taskworker.inside.{name}" for name in taskworker.inside.__all__}
    inside = f"{type(taskworker.inside.worker).__module__}.{type(taskworker.inside.worker).__qualname__}"
    assert public - told == {"taskworker.FileStorage", "taskworker.inside.worker"}
    assert told > {"storage.FileStorage", inside}  # which these are


def test_every_error_is_in_the_table() -> None:
    rows = re.findall(r"^\| \[`(\w+)`\]\(\S+#([\w.]+)\) \|", errors.error_table(), re.MULTILINE)
    assert [name for name, _ in rows] == [each.__name__ for each in errors.error_types()]
    assert re.findall(r"\S+$", api.errors(), re.MULTILINE) == [name for _, name in rows]


@pytest.mark.parametrize(
    ("each", "grpc_code", "exit_code"),
    [
        (FileNotFound, "NOT_FOUND", 3),
        (ConflictError, "ABORTED", 4),
        (ShardsUnavailable, "UNAVAILABLE", 6),
        (UsedAfterFork, "INTERNAL", 1),
    ],
)
def test_errors_have_their_codes(each: type[storage.StorageError], grpc_code: str, exit_code: int) -> None:
    assert (errors.grpc_code(each), errors.exit_code(each)) == (grpc_code, exit_code)


def test_every_variable_is_told() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    read = set(re.findall(r"\bTASKWORKER_[A-Z_]+[A-Z]\b", source))
    assert read == set(re.findall(r"\bTASKWORKER_[A-Z_]+[A-Z]\b", SHOWN["reference/configuration.md"]))


def test_every_part_is_used_and_known() -> None:
    named = {place.group(1) for text in PAGES.values() for place in PLACE.finditer(text)}
    assert named == {*PARTS, "included"}
    with pytest.raises(ValueError, match="there is no generated part 'nonsense'"):
        filled("<!-- generated: nonsense -->", "index.md")


def anchors(uri: str) -> set[str]:
    """The headings of a page, and the Python names that it describes, as links write them."""
    text = re.sub(r"```.*?```", "", SHOWN[uri], flags=re.DOTALL)
    headings = (
        re.sub(r"[^\w\s-]", "", title.strip().lower()) for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    )
    return {re.sub(r"[-\s]+", "-", title) for title in headings} | set(re.findall(r"^::: (\S+)", text, re.MULTILINE))


@pytest.mark.parametrize("uri", PAGES)
def test_links_between_pages_lead_somewhere(uri: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s:]*)(?:#([^)]+))?\)", SHOWN[uri]):
        page = str((DOCS / uri).parent.joinpath(target).resolve().relative_to(DOCS)) if target else uri
        assert page in PAGES, target
        assert not anchor or anchor in anchors(page), f"{target}#{anchor}"


def test_every_page_is_in_the_navigation_once() -> None:
    navigation = (links.ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    assert sorted(re.findall(r"\S+\.md$", navigation, re.MULTILINE)) == sorted(PAGES)


def test_lists_within_lists_are_set_in_by_four() -> None:
    assert links.nested("- a\n  - b\n    c\n\n    code") == "- a\n    - b\n        c\n\n    code"


def texts_of(path: Path) -> Iterator[str]:
    """The texts of a module, with … for what is filled in."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)  # type: ignore[misc]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_symptoms_are_what_the_program_says() -> None:
    """Each text quoted in the first column of the troubleshooting page is one that the code has."""
    said = "\n".join(text for path in SOURCES for text in texts_of(path))
    cells = re.findall(r"^\| (`[^|]*`) \|", PAGES["troubleshooting.md"], re.MULTILINE)
    assert len(cells) > 30
    for cell in cells:
        for quoted in re.findall(r"`([^`]+)`", cell):
            for piece in filter(None, (piece.strip() for piece in quoted.split("…"))):
                assert piece in said, f"{quoted!r}: no text of the program has {piece!r}; quote what it says now"


def test_text_is_shown_as_it_is() -> None:
    assert escaped("a *b* <C> [D] e_f|g ``h|i``") == r"a \*b\* \<C\> \[D\] e\_f\|g `h|i`"
