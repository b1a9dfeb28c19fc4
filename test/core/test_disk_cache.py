"""A cache never gives half a file, keeps its bound, and costs no result where the disk refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cosmos_policy_ros.core import disk_cache
from cosmos_policy_ros.core.disk_cache import DRAFT_LIFE, DiskCache


def put(cache: DiskCache, key: str, size: int, used: float) -> Path:
    with cache.making(key) as draft:
        draft.write_bytes(b"\0" * size)
    os.utime(cache.path(key), (used, used))
    return cache.path(key)


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "made", 100)
    assert cache.find("a") is None
    with pytest.raises(RuntimeError, match="half way"), cache.making("a") as draft:
        draft.write_bytes(b"half")
        assert cache.find("a") is None
        raise RuntimeError("half way")
    assert list(cache.folder.iterdir()) == []
    with cache.making("a") as draft, cache.making("a") as other:  # two processes at once
        draft.write_bytes(b"whole")
        other.write_bytes(b"whole")
    assert cache.find("a") == cache.folder / "a"
    assert [path.read_bytes() for path in cache.folder.iterdir()] == [b"whole"]


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 100)
    first, second, third = (
        put(cache, key, 30, used) for key, used in zip("abc", (1, 2, 3), strict=True)
    )
    assert cache.find("a") == first  # and counts as used now
    assert cache.make_room(30) == 40
    assert not second.exists()
    assert first.exists()
    assert third.exists()
    assert cache.make_room(90, keep={"a"}) == 70
    assert first.exists()
    assert not third.exists()


def test_drafts_of_dead_processes_go(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 100)
    with cache.making("living") as draft:
        dead = tmp_path / f".dead{disk_cache.DRAFT}"
        dead.write_bytes(b"\0" * 90)
        old = dead.stat().st_mtime - 2 * DRAFT_LIFE
        os.utime(dead, (old, old))
        assert cache.make_room(100) == 100
        assert draft.exists()
        assert not dead.exists()


def test_a_full_disk_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_cache, "SPARED", 1 << 62)
    assert DiskCache(tmp_path, 100).make_room(1) == 0
