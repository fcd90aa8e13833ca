"""Pages: links lead somewhere, files that they name exist, and their commands are understood."""

import ast
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from io import StringIO
from pathlib import Path

import pytest

from dgunet.model.registry import TASKS

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "*/README.md", "*/Datasets/README.md")
    for page in ROOT.glob(pattern)
)
FOLDERS = ("dgunet", "tests", "benchmarks", "figs", "docs", *TASKS)
MADE = r"Datasets/(?!README)|results/|checkpoints/|pretrained_models/(published|$)"  # by the user


@cache
def read(page: str | Path) -> str:
    return (ROOT / page).read_text("utf-8")


def commands(page: str) -> Iterator[list[str]]:
    """Yield the commands of a page: lines of its code blocks and code in its text, of a table
    the last column (the one before holds the published commands), as lists of words."""
    fenced = False
    for line in read(page).replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            fenced = not fenced
            continue
        text = line.rstrip("| ").rpartition("|")[2] if line.startswith("|") else line
        for code in [line.partition("  #")[0]] if fenced else re.findall(r"`([^`]+)`", text):
            if re.match(r"\s*(python|dgunet|make|torchrun) ", code):
                yield shlex.split(code)


def programs(words: list[str], page: str) -> tuple[list[str], list[str]]:
    """Return the modules or files that a command may run, and its arguments: `train.py` is that of
    the page's folder, or of any task on a page that is not a task's."""
    for index, word in enumerate(words):
        arguments = words[index + 1 :]
        if word == "-m" and arguments[0] != "pytest":
            return arguments[:1], arguments[1:]
        if word == "dgunet":
            return ["dgunet.tools.restore"], arguments
        if word.endswith(".py"):
            folders = [Path(), Path(page).parent, *map(Path, TASKS)]
            found = [f"{folder / word}" for folder in folders if (ROOT / folder / word).is_file()]
            alone = "/" in word or page.startswith(tuple(TASKS)) or (ROOT / word).is_file()
            return found[:1] if alone else found, arguments
    return [], []


@cache
def help_of(name: str) -> str:
    """Return what a program prints for --help."""
    text = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(text), pytest.raises(SystemExit):
        patch.setattr(sys, "argv", [name, "--help"])
        patch.setattr(sys, "path", [str((ROOT / name).parent), *sys.path])
        if name.endswith(".py"):
            runpy.run_path(str(ROOT / name), run_name="__main__")
        else:
            patch.delitem(sys.modules, name, raising=False)  # or runpy warns
            runpy.run_module(name, run_name="__main__")
    return text.getvalue()


def headings(page: Path) -> set[str]:
    lines = re.findall(r"^#+ (.+)$", read(page), re.M)
    return {re.sub(r"[^\w\- ]", "", line).lower().replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        path, _, heading = link.partition("#")
        if "://" not in link:
            target = (ROOT / page).parent / path if path else ROOT / page
            assert target.exists(), link
            assert not heading or heading in headings(target), link


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page):
    folders = "|".join(FOLDERS)
    text = re.sub(r"\[[^]]*\]\(", "(", read(page))  # links have their own test
    for name in re.findall(rf"(?<![\w/.])((?:{folders})/[\w./-]*\.[a-z]+)\b", text):
        assert (ROOT / name).exists() or re.search(MADE, name), name


def test_every_difference_has_its_test():
    table = read("docs/differences.md").partition("## Ours")[2].partition("\n\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    for row in rows:
        [(file, name)] = re.findall(r"`(tests/[\w/]+\.py)::(\w+)` \|$", row)
        assert re.search(rf"^def {name}\(", read(file), re.M), row
    assert len(rows) > 5


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page):
    for words in commands(page):
        if words[0] == "make":
            targets = re.findall(r"^([\w-]+):", read("Makefile"), re.M)
            assert [word for word in words[1:] if "=" not in word and word not in targets] == []
            continue
        names, arguments = programs(words, page)
        assert names or "pytest" in words, words
        for flag in (word for word in arguments if re.match(r"--?[a-zA-Z]", word)):
            known = (re.search(rf"(?<![\w-]){flag}(?![\w-])", help_of(name)) for name in names)
            assert any(known), f"{' or '.join(names)} {flag}"


@pytest.mark.parametrize("page", PAGES)
def test_configuration_keys_are_documented(page):
    keys = re.findall(r"\b(?:MODEL|OPTIM|DATA|TRAINING)\.[A-Z_]+\b", read(page))
    assert [key for key in keys if f"`{key}`" not in read("docs/training.md")] == []


@pytest.mark.parametrize("page", PAGES)
def test_python_in_pages_imports_what_there_is(page):
    for block in re.findall(r"^```python\n(?!>>>)(.*?)^```", read(page), re.M | re.S):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_scores_in_the_readme_are_those_of_the_results():
    section = read("README.md").partition("## Results")[2].partition("##")[0]
    scores = re.findall(r"\b\d\d\.\d\d\b", section)
    assert scores and [score for score in scores if score not in read("RESULTS.md")] == []
