"""Text is written whole or not at all."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tritter_mem.errors import OutputError
from tritter_mem.input_files import open_input, remembering_inputs
from tritter_mem.results.writing import check_writable, open_atomically, write_text_atomically
from tritter_mem.temporary import temporary_folder


def test_writing_makes_folders_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "page.html"
    write_text_atomically(path, "ü\n")
    assert path.read_bytes() == "ü\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match=r"cannot be written: No space left on device; name"):
        write_text_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_text_atomically(tmp_path / "page.html", "new")
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_followed_and_not_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "real.html", tmp_path / "link.html"
    link.symlink_to(target)
    write_text_atomically(link, "text")
    assert link.is_symlink()
    assert target.read_text() == "text"


def test_a_new_file_has_the_permissions_that_the_user_s_files_have(tmp_path: Path) -> None:
    plain, written = tmp_path / "plain", tmp_path / "written"
    plain.touch()
    write_text_atomically(written, "")
    assert written.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("act", [check_writable, lambda path: write_text_atomically(path, "x")])
def test_what_cannot_be_written_is_refused(tmp_path: Path, act: Any) -> None:
    blocker = tmp_path / "file"
    blocker.touch()
    for path in (tmp_path, blocker / "page.html", Path("/proc/none/page.html"), Path("/dev/null")):
        with pytest.raises(OutputError, match=r"cannot be written: .+; name a file"):
            act(path)
    assert Path("/dev/null").is_char_device()


def test_checking_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "page.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into any folder")
def test_a_folder_without_permission_is_found_before_the_run(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        check_writable(tmp_path / "page.html")


# What is replaced, and what is in the way


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "page.html"
    path.touch()
    path.chmod(mode)
    write_text_atomically(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_text() == "new"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_file_that_is_replaced_keeps_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.touch(mode=0o600)
    os.chown(path, 1234, 2345)
    write_text_atomically(path, "new")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_is_being_written_in_place_of_a_private_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.touch(mode=0o600)
    with open_atomically(path) as file:
        file.write(b"secret")
        (being_written,) = set(tmp_path.iterdir()) - {path}
        assert stat.S_IMODE(being_written.stat().st_mode) == 0o600


@pytest.mark.parametrize("act", [check_writable, lambda path: write_text_atomically(path, "x")])
def test_links_in_a_loop_are_refused(tmp_path: Path, act: Any) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for path in (tmp_path / "a", tmp_path / "a" / "page.html"):
        with pytest.raises(OutputError, match=r"cannot be written: Too many levels"):
            act(path)


def test_a_link_to_a_file_that_is_not_there_yet_is_followed(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "new" / "page.html")
    write_text_atomically(link, "text")
    assert link.is_symlink()
    assert (tmp_path / "new" / "page.html").read_text() == "text"


# Inputs


@pytest.mark.parametrize("act", [check_writable, lambda path: write_text_atomically(path, "x")])
def test_an_input_is_never_written_over(tmp_path: Path, act: Any) -> None:
    path, link, hard = tmp_path / "in.yaml", tmp_path / "link", tmp_path / "hard"
    path.write_text("input")
    link.symlink_to(path)
    hard.hardlink_to(path)
    with remembering_inputs():
        open_input(path).close()
        for name in (path, link, hard, tmp_path / "new" / ".." / "in.yaml"):
            with pytest.raises(OutputError, match="this command reads it"):
                act(name)
    assert path.read_text() == "input"
    act(path)  # by another command


# What dead processes left

KILLED = """
import os, signal, sys
from pathlib import Path
from tritter_mem.results.writing import open_atomically
from tritter_mem.temporary import temporary_folder
with temporary_folder() as folder, open_atomically(Path(sys.argv[1])) as file:
    (folder / "deep").mkdir()
    file.write(b"half")
    print(folder, flush=True)
    if sys.argv[2] == "wait":
        sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def start_killed(tmp_path: Path, how: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path / "out" / "page.html", how],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_what_a_killed_process_left_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = start_killed(tmp_path, "at once")
    folder = Path(dead.communicate()[0].strip())
    assert dead.returncode == -signal.SIGKILL
    assert folder.parent == tmp_path
    assert folder.is_dir()
    assert len(list((tmp_path / "out").iterdir())) == 1
    with temporary_folder() as own:
        assert own.is_dir()
        assert not folder.exists()
    write_text_atomically(tmp_path / "out" / "page.html", "whole")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["page.html"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_living_process_holds_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    living = start_killed(tmp_path, "wait")
    assert living.stdout is not None
    folder = Path(living.stdout.readline().strip())
    with temporary_folder():
        assert (folder / "deep").is_dir()
    write_text_atomically(tmp_path / "out" / "other.html", "whole")
    assert len(list((tmp_path / "out").iterdir())) == 2
    living.communicate()


def test_what_others_called_alike_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    (tmp_path / "tritter-mem-run-link").symlink_to(kept)
    with temporary_folder():
        pass
    assert (kept / "file").exists()
    assert (tmp_path / "tritter-mem-run-link").is_symlink()


@pytest.mark.parametrize("name", ["tritter-mem-0", "tritter-mem-rehearsal-abc"])
def test_folders_that_hold_no_lock_are_left_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / name).mkdir()
    with temporary_folder():
        assert (tmp_path / name).is_dir()


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    """A second writer that reads the file in order to write it anew waits for the first."""
    path = tmp_path / "new" / "count"
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tritter_mem.results.writing import one_writer_at_a_time, write_text_atomically\n"
        "path = Path(sys.argv[1])\n"
        "for _ in range(50):\n"
        "    with one_writer_at_a_time(path):\n"
        "        count = int(path.read_text()) if path.exists() else 0\n"
        "        write_text_atomically(path, str(count + 1))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    several = [
        subprocess.Popen([sys.executable, "-c", code, path], env=environment) for _ in range(3)
    ]
    assert [one.wait() for one in several] == [0, 0, 0]
    assert path.read_text() == "150"
