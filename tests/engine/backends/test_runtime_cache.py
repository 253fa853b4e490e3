"""The kernels that TensorRT-RTX compiled are there at the next start, of the engines that ran last."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlpdeploy.engine import nvidia
from mlpdeploy.engine.backends.tensorrt import _runtime_cache
from mlpdeploy.errors import ArtifactError
from tests.engine.backends.fake_tensorrt import Cache


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of this user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(nvidia, "probe", lambda: nvidia.Gpu("RTX 4090", "sm89", "13.0"))
    return tmp_path / "mlpdeploy"


RTX = SimpleNamespace(IRuntimeCache=Cache)
CACHING = SimpleNamespace(create_runtime_config=lambda: SimpleNamespace(create_runtime_cache=Cache))


def test_kernels_that_were_compiled_are_there_at_the_next_start(cached: Path) -> None:
    with _runtime_cache.kernels(RTX, CACHING, "a" * 64) as cache:
        assert cache is not None and cache.known == b"nothing"
        cache.known = b"kernels of a"
    (file,) = cached.iterdir()
    assert file.name == "kernels-aaaaaaaaaaaaaaaa-sm89-rtx-4090.cache"
    with _runtime_cache.kernels(RTX, CACHING, "a" * 64) as cache:
        assert cache is not None and cache.known == b"kernels of a"
    with _runtime_cache.kernels(RTX, CACHING, "b" * 64) as cache:
        assert cache is not None and cache.known == b"nothing"
    file.write_bytes(b"garbage")
    with _runtime_cache.kernels(RTX, CACHING, "a" * 64) as cache:
        assert cache is not None and cache.known == b"nothing"
    with _runtime_cache.kernels(SimpleNamespace(), CACHING, "a" * 64) as cache:
        assert cache is None


def test_kernels_are_kept_of_the_engines_that_ran_last(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runtime_cache, "KEPT", 2)
    for place, name in enumerate("abca"):
        with _runtime_cache.kernels(RTX, CACHING, name * 64) as cache:
            assert cache is not None
            cache.known = b"kernels"
        for file in cached.glob(f"kernels-{name}*"):
            os.utime(file, (1e9 + place, 1e9 + place))
    assert sorted(file.name[8] for file in cached.iterdir()) == ["a", "c"]


def test_a_cache_folder_that_cannot_be_written_stops_nothing(cached: Path) -> None:
    cached.write_text("a file where the folder should be")
    with _runtime_cache.kernels(RTX, CACHING, "a" * 64) as cache:
        assert cache is not None


def test_what_fails_leaves_no_kernels(cached: Path) -> None:
    with pytest.raises(ArtifactError), _runtime_cache.kernels(RTX, CACHING, "a" * 64):
        raise ArtifactError("it cannot run")
    assert not cached.exists()
