"""Files are replaced whole or not at all."""

import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys

import pytest

from dgunet.base.errors import InputError
from dgunet.base.files import (
    OwnedFolder,
    read_json,
    regular_file,
    replacing,
    sha256,
    write_atomically,
    write_bytes,
)


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    file = tmp_path / "a"
    write_bytes(file, b"old")

    def write(stream):
        stream.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, write)
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path):
    """… and what it left of the new one is gone when the next one owns the folder."""
    file = tmp_path / "a"
    write_bytes(file, b"old")
    program = f"""
import os, signal
from dgunet.base.files import write_atomically
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
write_atomically({str(file)!r}, lambda stream: stream.write(b"x" * 100_000))
"""
    assert run(program).returncode == -signal.SIGKILL
    (partial,) = set(tmp_path.iterdir()) - {file}
    (tmp_path / ".mine.part").touch()
    assert partial.suffix == ".part" and file.read_bytes() == b"old"
    with OwnedFolder(tmp_path):
        assert file.exists() and not partial.exists() and (tmp_path / ".mine.part").exists()


def run(program: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, **options
    )


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_a_folder_has_one_owner_until_it_is_killed(tmp_path):
    program = f"""
import os, signal, sys
from dgunet.base.files import OwnedFolder
folder = OwnedFolder({str(tmp_path)!r})
if not os.fork():  # as a loader's worker, which outlives it
    signal.pause()
print(os.getpid(), flush=True)
sys.stdin.read()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "start_new_session": True}
    with subprocess.Popen([sys.executable, "-c", program], text=True, **pipes) as owner:
        number = int(owner.stdout.readline())
        with pytest.raises(
            InputError, match=f"{tmp_path}: process {number} on .*, since .* writes"
        ):
            OwnedFolder(tmp_path)
        owner.kill()
        owner.wait()
        with OwnedFolder(tmp_path):
            assert os.listdir(tmp_path) == [".lock"]
        os.killpg(owner.pid, signal.SIGKILL)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="devices and pipes with a name")
def test_devices_pipes_and_files_of_another_kind_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/full")
    for name in ("pipe", "link"):
        with pytest.raises(InputError, match=f"{name}: is no regular file"):
            write_bytes(tmp_path / name, b"text")
        with pytest.raises(InputError, match="is no regular file"):
            write_atomically(tmp_path / name, lambda file: file.write(b"text"))
    table, photo, weights = b"set,image\n", b"\x89PNG\r\n\x1a\n\0\0", b"PK\x03\x04\0\0"
    for old, new, words in (
        (photo, table, "is an image, and would be replaced by text"),
        (weights, table, "is a checkpoint or archive, and would be replaced by text"),
        (photo, b"\x1f\0", "is an image, and would be replaced by binary data"),
        (table, photo, "is text, and would be replaced by an image"),
        (b"\x08\n", table, "is an ONNX file, and would be replaced by text"),
    ):
        (tmp_path / "a").write_bytes(old)
        with pytest.raises(InputError, match=words):
            write_bytes(tmp_path / "a", new)
        assert (tmp_path / "a").read_bytes() == old
        write_bytes(tmp_path / "a", old + b" again")
    assert sorted(os.listdir(tmp_path)) == ["a", "link", "pipe"]


def test_only_regular_files_are_read_and_json_of_a_size(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind, words in (
        (tmp_path / "pipe", InputError, "pipe: is no regular file; expected an image"),
        (tmp_path / "none", FileNotFoundError, "none: does not exist; expected an image"),
        (tmp_path, IsADirectoryError, "is a folder; expected an image"),
    ):
        with pytest.raises(kind, match=words):
            regular_file(path, "an image")
    for text, words in (
        ("[" * 100_000, "is no JSON"),
        ("9" * 5000, "is no JSON"),
        ('"\x1b[31m', "is no JSON"),
        ("[" + "1," * 100 + "1]", "has 203 bytes; expected settings"),
    ):
        (tmp_path / "a").write_text(text)
        with pytest.raises(InputError, match=words) as caught:
            read_json(tmp_path / "a", "settings", limit=200 if "1," in text else 10**6)
        assert str(caught.value).isprintable()


def test_the_file_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(os.fstat(fd).st_mode), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("replace"), replace(*names)))
    write_atomically(tmp_path / "a", lambda file: file.write(b"abc"))
    assert (tmp_path / "a").read_bytes() == b"abc"
    kinds = [call if call == "replace" else stat.S_ISDIR(call) for call in calls]
    assert kinds == [False, "replace", True]  # the file, then the folder


@pytest.mark.skipif(os.name != "posix", reason="file modes and links are POSIX")
def test_modes_are_the_users_and_links_are_followed_or_replaced(tmp_path):
    old = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", lambda file: file.write(b"a"))
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    link, target = tmp_path / "link", tmp_path / "elsewhere" / "b"
    link.symlink_to(target)
    for content in (b"1", b"2"):
        write_atomically(link, lambda file, content=content: file.write(content))
        assert link.is_symlink() and target.read_bytes() == content
    write_bytes(link, b"3")
    assert not link.is_symlink() and (link.read_bytes(), target.read_bytes()) == (b"3", b"2")


def test_errors_name_the_file_that_was_to_be_written(tmp_path, monkeypatch):
    def denied(*arguments):  # as in a folder that is read-only; root could not be denied it
        raise PermissionError(errno.EACCES, "Permission denied", str(arguments[0]))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", denied)
        with pytest.raises(PermissionError) as caught:
            OwnedFolder(tmp_path)
    assert caught.value.filename == str(tmp_path)
    with pytest.raises(IsADirectoryError, match="is a folder; expected the name of a file"):
        write_bytes(tmp_path, b"")
    with pytest.raises(OSError) as caught, replacing(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a") and not list(tmp_path.iterdir())
    longest = tmp_path / ("x" * 255)
    write_bytes(longest, b"a")
    assert sha256(longest) == hashlib.sha256(b"a").hexdigest()
