"""Nothing is loaded that others could have put there."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpucnn.compilation import trust
from gpucnn.compilation.cache import cached
from gpucnn.compilation.files import write_whole
from gpucnn.compilation.trust import deny_others, make_folder, private_folder, safe, why_unsafe

pytestmark = pytest.mark.skipif(os.name != "posix", reason="other systems have other permissions")


@pytest.fixture(autouse=True)
def unwarned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_warned", False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of a cache: above/cache/cpu/thing.so."""
    make_folder(tmp_path / "above" / "cache" / "cpu")
    path = tmp_path / "above" / "cache" / "cpu" / "thing.so"
    path.write_bytes(b"code")
    path.chmod(0o644)
    return path


MODES = [
    (0, 0o644, ""),
    (0, 0o755, ""),
    (0, 0o664, "its group"),
    (0, 0o646, "everybody"),
    (1, 0o755, ""),
    (1, 0o770, "its group"),
    (1, 0o777, "everybody"),
    (1, 0o1777, "everybody"),  # others may put files of names that are not there yet
    (2, 0o755, ""),
    (2, 0o770, "its group"),
    (2, 0o777, "everybody"),
    (2, 0o1777, ""),  # as /tmp: our folder in it is ours
    (3, 0o770, ""),  # as a home folder that a group shares: who replaces the cache folder owns it
    (3, 0o777, "everybody"),
    (3, 0o1777, ""),
]


@pytest.mark.table(20)
@pytest.mark.parametrize(("level", "mode", "writers"), MODES)
def test_who_may_write(file: Path, level: int, mode: int, writers: str) -> None:
    part = (file, *file.parents)[level]
    part.chmod(mode)
    expected = f"{part} can be written by {writers} (mode {mode:04o})" if writers else ""
    assert why_unsafe(file) == expected
    if level:
        assert why_unsafe(file.with_name("not there yet")) == expected


@pytest.mark.parametrize("level", [0, 1, 2])
def test_whose_it_is(file: Path, monkeypatch: pytest.MonkeyPatch, level: int) -> None:
    """A file of root is anyone's, one of another user nobody's; by the numbers alone, so that any user can run it."""
    part, status = (file, *file.parents)[level], Path.stat
    for owner, me, is_safe in ((0, 1000, True), (1000, 1000, True), (1001, 1000, False), (1001, 0, False)):
        monkeypatch.setattr(os, "geteuid", lambda me=me: me)

        def stat_of(path: Path, owner: int = owner, me: int = me, **options: Any) -> Any:
            return SimpleNamespace(st_mode=status(path, **options).st_mode, st_uid=owner if path == part else me)

        monkeypatch.setattr(Path, "stat", stat_of)
        reason = why_unsafe(file)
        assert reason == ("" if is_safe else f"{part} belongs to user {owner}, not to user {me} or root")


def test_a_relative_path_has_folders_above_it_too(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    assert why_unsafe(Path(file.name)) == ""
    file.parents[2].chmod(0o777)
    assert "above can be written by everybody" in why_unsafe(Path(file.name))


def test_another_system_has_other_permissions(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.chmod(0o666)
    monkeypatch.setattr(trust, "os", SimpleNamespace(name="nt"))
    assert why_unsafe(file) == ""


def test_a_link_is_as_safe_as_what_it_leads_to(file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(file.parent)
    assert why_unsafe(tmp_path / "link" / file.name) == ""
    file.parent.chmod(0o777)
    assert "everybody" in why_unsafe(tmp_path / "link" / file.name)


def test_what_is_unsafe_is_built_in_a_private_folder_and_said_once(file: Path) -> None:
    def build(target: Path) -> None:
        target.write_bytes(b"ours")

    assert safe(file) == file
    file.parent.chmod(0o777)
    with pytest.warns(RuntimeWarning, match=r"written by everybody.*chmod go-w.*GPUCNN_CACHE_DIR") as caught:
        path = cached(file, build)
    assert len(caught) == 1
    assert path == private_folder() / "cpu" / "thing.so"
    assert path.read_bytes().startswith(b"ours")
    assert file.read_bytes() == b"code"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cached(file, lambda target: pytest.fail("built again")) == path
    path.unlink()


def test_threads_share_a_private_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_private", {})
    meet, found = threading.Barrier(8), []

    def ask() -> None:
        meet.wait(60)
        found.append(private_folder())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {private_folder()}


def test_a_private_folder_is_this_users_and_stays_one() -> None:
    folder = private_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert private_folder() == folder
    assert why_unsafe(folder / "cpu" / "thing.so") == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_the_child_of_a_fork_has_its_own_and_leaves_its_parents() -> None:
    code = """
import os, sys
from gpucnn.compilation.trust import private_folder
ours = private_folder()
if os.fork() == 0:
    assert private_folder() != ours
    sys.exit(0)
assert os.wait()[1] == 0
assert ours.is_dir()
print(ours)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not Path(ran.stdout.strip()).exists()


# --- What is made -----------------------------------------------------------------------------------------------------


@pytest.fixture
def open_umask() -> Any:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_folders_are_made_for_this_user_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("", "a", "a/b")] == [0o755, 0o700, 0o700]
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        make_folder(tmp_path / "file" / "b")


@pytest.mark.usefixtures("open_umask")
def test_files_are_written_by_their_owner_alone(tmp_path: Path) -> None:
    write_whole(tmp_path / "new" / "thing", b"code")
    assert stat.S_IMODE((tmp_path / "new" / "thing").stat().st_mode) == 0o644
    (tmp_path / "library").touch(0o777)
    deny_others(tmp_path / "library")
    assert stat.S_IMODE((tmp_path / "library").stat().st_mode) == 0o755
    path = cached(tmp_path / "cache" / "thing", lambda target: target.write_bytes(b"code") and None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
