"""Files are replaced whole or not at all."""

import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys

import pytest

from dgunet.base.files import replacing, sha256, write_atomically, write_bytes


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
    file = tmp_path / "a"
    write_bytes(file, b"old")
    program = f"""
import os, signal
from dgunet.base.files import write_atomically
def write(stream):
    stream.write(b"x" * 100_000)
    stream.flush()
    print(sorted(os.listdir({str(tmp_path)!r})))
    os.kill(os.getpid(), signal.SIGKILL)
write_atomically({str(file)!r}, write)
"""
    result = subprocess.run([sys.executable, "-uc", program], capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL and ".part" in result.stdout, result.stderr
    assert file.read_bytes() == b"old"


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


def test_errors_name_the_file_that_was_to_be_written(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder, expected the name of a file"):
        write_bytes(tmp_path, b"")
    with pytest.raises(OSError) as caught, replacing(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a") and not list(tmp_path.iterdir())
    longest = tmp_path / ("x" * 255)
    write_bytes(longest, b"a")
    assert sha256(longest) == hashlib.sha256(b"a").hexdigest()
