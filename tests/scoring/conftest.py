"""What the tests of test.py and evaluate.py share: running a program, reading what it wrote."""

import re
import sys

import pytest


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a program's `main`. Return what it printed, tables without their padding; of a refused
    run the one line of its error."""

    def run(program, *arguments) -> str:
        monkeypatch.setattr(sys, "argv", [program.__file__, *map(str, arguments)])
        try:
            program.main()
        except SystemExit as end:
            assert end.code == 2
            line = capsys.readouterr().err
            assert line.startswith("error: ") and line.count("\n") == 1
            return line
        return re.sub(" +", " ", "".join(capsys.readouterr()))

    return run
