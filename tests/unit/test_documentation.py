"""The pages say what the code does: generated ones do not lag, links and names lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from models import errors
from models.reports.run import RunReport
from models.settings import SECRETS
from tests import reference
from tests.faults.matrix import ROWS

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
HANDWRITTEN = [page for page in PAGES if page.name not in ("settings.md", "commands.md")]
CODE = [path for name in ("models", "producer", "worker") for path in (ROOT / name).rglob("*.py")]


def test_generated_pages_are_what_make_docs_writes() -> None:
    for path, text in reference.documents().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} lags: make docs"


def test_every_variable_that_the_code_names_is_in_the_settings_page() -> None:
    page = reference.settings()
    found = {
        name
        for path in CODE
        for name in re.findall(r'"((?:MIGRATION|FLOWER|OTEL|SUDO)_[A-Z_]+)"', path.read_text())
    }
    assert len(found) > 15
    listed = set(re.findall(r"^\| `([A-Z_]+)`", page, re.MULTILINE))
    assert found <= listed, found - listed
    assert set(SECRETS) == set(re.findall(r"^\| `([A-Z_]+)` \*", page, re.MULTILINE))


def test_every_exit_status_of_the_code_is_in_the_table() -> None:
    kinds = [errors.MigrationError, *errors.MigrationError.__subclasses__()]
    states = [RunReport(state=state).exit_status for state in ("failed", "cancelled", "completed")]
    assert {kind.exit_status for kind in kinds} | set(states) <= set(reference.EXIT_STATUS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_repository_lead_to_a_file(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        found = (page.parent / path) if path else page
        assert found.exists(), f"{page.name}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in slugs, f"{page.name}: {target}"


@pytest.mark.parametrize("page", HANDWRITTEN, ids=lambda page: page.name)
def test_commands_and_options_that_a_page_shows_exist(page: Path) -> None:
    known = reference.commands()
    text = page.read_text(encoding="utf-8")
    code = " | ".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))
    for words in re.findall(r"(?<![\w./-])producer ([a-z][a-z-]*(?: [^`\n#|]*)?)", code):
        name, *rest = words.split()
        assert name in reference.cli.commands, f"{page.name}: producer {words}"
        if name in ("schema", "repair", "servers") and rest:
            name = f"{name} {rest[0]}"
        shown = re.search(rf"^## producer {name}$(.*?)(?=^## |\Z)", known, re.M | re.S)
        assert shown, f"{page.name}: producer {words}"
        for option in re.findall(r"--[a-z-]+", words):
            assert option in shown[1], f"{page.name}: producer {words}"


def test_rows_of_the_crash_matrix_that_the_answers_name_exist() -> None:
    text = (ROOT / "docs" / "what-if.md").read_text(encoding="utf-8")
    lists = re.findall(r"\bRows?\s\*.*?[.;]", text, re.DOTALL)
    named = {" ".join(name.split()) for rows in lists for name in re.findall(r"\*([^*]+)\*", rows)}
    known = {row.name for row in ROWS}
    assert len(named) > 20
    assert named <= known, named - known


# Who reads these is in a hurry, or tired.
MOST_WORDS = 25
# An idea has one word: fix, quarantined, continue or resume, released, rolled back.
OTHER_WORDS = (
    r"\b(mend\w*|sets? aside|go(es)? on with|handed back|taken back|is begun|no more that)\b"
)
FOR_OPERATORS = ("README.md", "docs/index.md", "docs/runbook.md", "docs/what-if.md")


def sentences(text: str) -> list[str]:
    """The sentences of a page, each cell of a table and each item of a list for itself.

    Code blocks are left out; a piece of code is one word, and a link is its words.
    """
    text = re.sub(r"```.*?```|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"`[^`]+`", "`code`", re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text))
    text = re.sub(r"^\s*(?:\d+\.|[-*]) |^#.*$|(?<!\\)\|", "\n\n", text, flags=re.MULTILINE)
    blocks = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text))
    return [each for block in blocks for each in re.split(r"(?<=[.!?:])[*)]* (?=[A-Z*`(])", block)]


@pytest.mark.parametrize("page", FOR_OPERATORS)
def test_sentences_that_an_operator_reads_are_short(page: str) -> None:
    found = sentences((ROOT / page).read_text(encoding="utf-8"))
    assert len(found) > 10
    assert [each for each in found if len(re.findall(r"[\w'./-]*\w", each)) > MOST_WORDS] == []
    assert [each for each in found if re.search(OTHER_WORDS, each, re.IGNORECASE)] == []


def test_a_sentence_ends_where_its_reader_takes_a_breath() -> None:
    page = (
        "# No\n1. One `two three` [four](five) six.\n   Seven, eight\n| nine | ten |\n```\nno\n```"
    )
    found = [each for each in sentences(page) if each]
    assert found == ["One `code` four six.", "Seven, eight", "nine", "ten"]


@pytest.mark.parametrize("page", HANDWRITTEN, ids=lambda page: page.name)
def test_tests_and_modules_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:tests|models|producer|worker|deploy)/[\w./]+)`", text):
        assert (ROOT / path).exists(), f"{page.name}: {path}"
