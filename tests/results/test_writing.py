"""Text is written whole or not at all."""

import os
from pathlib import Path
from typing import Any

import pytest

from tritter_mem.errors import OutputError
from tritter_mem.results.writing import check_writable, write_text_atomically


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
