"""How programs end: one line, whatever becomes of the streams."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dgunet.base.errors import first_few, printable

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, sys
from dgunet.base.errors import InputError, command
@command
def main():
    number = os.open(os.devnull, os.O_RDONLY)
    assert number > 2, number
    print("result")
    {end}
main()
"""


def run(end: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", PROGRAM.format(end=end)]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize(
    ("end", "code", "err"),
    [
        ("", 0, ""),
        ("raise InputError('a\\n\\x1b[2J' + 'b' * 10**7)", 2, "error: a \\x1b[2Jbbb"),
        ("raise MemoryError", 2, "error: not enough memory\n"),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
        ("raise PermissionError(13, 'Permission denied', 'a')", 2, "error: a: Permission denied\n"),
    ],
)
def test_a_program_ends_with_a_line_even_if_stdout_is_closed(end, code, err):
    for options in (
        {"stdout": subprocess.DEVNULL},
        {"preexec_fn": lambda: (os.close(0), os.close(1))},
    ):
        done = run(end, **options)
        assert done.returncode == code and done.stderr.startswith(err)
        assert len(done.stderr) < 3000 and done.stderr.count("\n") == bool(err)


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    "program",
    ["demo.py", "-m dgunet.tools.convert", "Compressive_Sensing/measure.py", "Deraining/test.py"],
)
def test_control_c_while_torch_is_imported_ends_in_a_line(program, tmp_path):
    (tmp_path / "torch.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time\ntime.sleep(9)"
    )
    done = subprocess.run(
        [sys.executable, *program.split(), "--help"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "interrupted\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux")
def test_a_full_disk_behind_stdout_is_told():
    with open("/dev/full", "w") as full:
        done = run("", stdout=full)
    assert (done.returncode, done.stderr) == (2, "error: No space left on device\n")


def test_torchrun_is_told_what_was_wrong(tmp_path):
    file = tmp_path / "error.json"
    run("raise InputError('a is wrong')", env={**os.environ, "TORCHELASTIC_ERROR_FILE": str(file)})
    told = json.loads(file.read_text())
    assert told["message"] == "error: a is wrong" and told["timestamp"] < int(file.stat().st_mtime)


def test_what_comes_from_a_file_is_printed_escaped_and_cut():
    evil = "a\x1b]0;title\x07\x9b31m\u202egnp\n\udcff\0"
    assert printable(evil) == r"a\x1b]0;title\x07\x9b31m\u202egnp\n\udcff\x00"
    assert printable("写真 – ü 🙂") == "写真 – ü 🙂"
    assert len(first_few(["x" * 10**7] * 9)) < 1000 and "\x1b" not in first_few([evil])
