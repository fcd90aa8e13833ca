"""Imports point one way. CONTRIBUTING.md draws the arrows; this test reads them from the code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TASKS = ("Deblurring", "Deraining", "Denoising", "Compressive_Sensing")
DIRECT = {  # room → the rooms right below it
    "tools": {"scoring", "training"},
    "integrations": {"inference"},
    "scoring": {"inference"},
    "training": {"inference", "data"},
    "inference": {"model"},
    "model": {"images"},
    "data": {"images"},
    "images": {"base"},
    "base": set(),
}


def below(room: str) -> set[str]:
    """Return all rooms that a room may import, itself included."""
    return {room}.union(*(below(lower) for lower in DIRECT[room]))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and absolute name of everything that a file imports, within functions too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def files() -> list[tuple[str, Path]]:
    """Return every file of the rooms and task folders with the name of its room or folder."""
    return [
        (folder.name, path)
        for folder in [*(ROOT / "dgunet" / room for room in DIRECT), *(ROOT / t for t in TASKS)]
        for path in sorted(folder.rglob("*.py"))
    ]


def test_every_module_lies_in_a_room():
    allowed = {"__init__.py", "__main__.py", *DIRECT, "__pycache__"}
    assert {path.name for path in (ROOT / "dgunet").iterdir()} <= allowed


def test_every_room_and_task_is_in_the_wheel():
    packages = (ROOT / "pyproject.toml").read_text("utf-8").partition("packages = [")[2]
    packages = packages.partition("]")[0]
    for folder in {path.parent for _, path in files()}:
        parts = folder.relative_to(ROOT).parts
        name = ".".join(("dgunet", *parts) if parts[0] in TASKS else parts)
        assert f'"{name}"' in packages


def test_imports_point_one_way():
    for own, path in files():
        for line, name in imports(path):
            where = f"{path}:{line}: imports {name}"
            assert not name.startswith("."), f"{where}: relative imports hide the room"
            top, other = f"{name}.".split(".")[:2]
            if top in TASKS:
                pytest.fail(f"{where}: write dgunet.{name}, or the module exists twice")
            if top == "dgunet" and other in TASKS:
                assert other == own, f"{where}: only the registry knows the tasks"
            if top == "dgunet" and own in DIRECT and other in DIRECT:
                assert other in below(own), f"{where}: {own} may import {sorted(below(own))} only"
            if top == "importlib" and own in DIRECT:
                assert path.name == "registry.py", f"{where}: only the registry imports by name"
