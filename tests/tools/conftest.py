"""What the tests of several commands share."""

import pytest


@pytest.fixture
def refusal(capsys):
    """Call a program's `main` with arguments that it must refuse in a line; return the line."""

    def refusal(main, *arguments):
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        line = capsys.readouterr().err
        assert end.value.code == 2 and line.startswith("error: ") and line.count("\n") == 1
        return line.removeprefix("error: ").rstrip("\n")

    return refusal
