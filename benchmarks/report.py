"""What a result is written down with: the machine, the commit, JSON, and tables in a page.

A table is a list of rows, each a dictionary from column to value: as that it goes to a JSON file,
and as Markdown between `<!-- begin: NAME -->` and `<!-- end: NAME -->` of a page.
"""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from dgunet.base.errors import InputError
from dgunet.base.files import write_bytes
from dgunet.scoring.tables import markdown

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
REPORT = ROOT / "RESULTS.md"


def spread(values: Sequence[float]) -> dict:
    """Return the median of repeated measurements with their range.

    >>> spread([3.0, 1.0, 2.0])
    {'median': 2.0, 'lowest': 1.0, 'highest': 3.0, 'runs': [3.0, 1.0, 2.0]}
    """
    middle = statistics.median(values)
    return {"median": middle, "lowest": min(values), "highest": max(values), "runs": list(values)}


def cell(value: object) -> str:
    """Return a value as it stands in a table: numbers with three digits, a `spread` as its median
    with the lowest and the highest.

    >>> cell(0.012345), cell(1234.5), cell(spread([1.0, 1.25, 1.5]))
    ('0.0123', '1,234', '1.25 (1.00–1.50)')
    """
    if isinstance(value, Mapping):
        digits = _decimals(value["median"])
        median, low, high = (f"{value[key]:,.{digits}f}" for key in ("median", "lowest", "highest"))
        return f"{median} ({low}–{high})"
    if isinstance(value, float):
        if 0 < abs(value) < 1e-3:
            return f"{value:.0e}"
        return f"{value:,.{_decimals(value)}f}" if math.isfinite(value) else ""
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else str(value)


def _decimals(value: float) -> int:
    return min(4, max(0, 2 - math.floor(math.log10(abs(value))))) if value else 0


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows as a Markdown table; a row may lack columns of the others."""
    headers = list(dict.fromkeys(column for row in rows for column in row))
    return markdown([[cell(row.get(column)) for column in headers] for row in rows], headers)


def processor() -> str:
    """Return the name of the CPU, and what it has for products of bf16 matrices."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    name = re.search(r"model name\s*: (.*)", text)
    amx = " with AMX" if "amx_bf16" in text else ""
    return (name[1] if name else platform.machine()) + amx


@functools.cache
def commit() -> str:
    """Return the commit, with -dirty after it if a file other than results differs; "unknown"
    outside a checkout."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        return "unknown"
    others = [".", ":!RESULTS.md", ":!benchmarks/results", ":!benchmarks/README.md"]
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *others]).returncode
    return head.stdout.strip() + "-dirty" * bool(changed)


def machine(device: torch.device, threads: int) -> str:
    """Return in words what a figure depends on beside the code's version, and that version."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{processor()}, {threads} of {os.cpu_count()} cores"
    return (
        f"{name}; torch {torch.__version__}, Python {platform.python_version()}; commit "
        f"{commit()}, {time.strftime('%Y-%m-%d')}; load before it began {os.getloadavg()[0]:.1f}"
    )


def read_json(file: Path) -> dict:
    """Return what a JSON file holds; nothing where there is none."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def write_json(file: Path, content: Mapping) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False, default=str)
    write_bytes(file, f"{text}\n".encode())


def filled(page: Path, tables: Mapping[str, str]) -> str:
    """Return a page's text with these tables anew. Raises `InputError` if it has no place for
    one."""
    text = page.read_text(encoding="utf-8")
    for name, content in tables.items():
        begin, end = f"<!-- begin: {name} -->\n", f"<!-- end: {name} -->"
        before, _, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not closed:
            raise InputError(f"{page}: has no place for {name}; expected {begin.strip()}, {end}")
        text = f"{before}{begin}{content}\n{end}{after}"
    return text


def fill(page: Path, tables: Mapping[str, str]) -> None:
    """Write the page that `filled` returns."""
    write_bytes(page, filled(page, tables).encode())
