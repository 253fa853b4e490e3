"""Triton model repositories: what a server reads, and nothing that was there is lost or half written.

A real server is asked in test_triton_server.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from mlpdeploy.artifact.store import Artifact
from mlpdeploy.errors import InputError
from mlpdeploy.export import triton
from mlpdeploy.export.triton import Wanted, _config
from tests.conftest import REPOSITORY
from tests.export.made_up import PORTS, made_up, read, tree


def test_an_onnx_model_is_batched_and_warmed_up_as_the_engine_is_tuned(artifact: Artifact, tmp_path: Path) -> None:
    found = triton.add(artifact, tmp_path / "models", Wanted("net", instances=2))
    assert {key: found[key] for key in ("model", "version", "kind", "files", "notes")} == {
        "model": "net", "version": 1, "kind": "onnx", "files": ["config.pbtxt", "1/model.onnx"], "notes": [],
    }  # fmt: skip
    (line,) = found["commands"]
    assert line.startswith("docker run --rm -p 8000:8000") and f"-v {tmp_path}/models:/models nvidia/" in line
    assert (tmp_path / "models" / "net" / "1" / "model.onnx").read_bytes() == artifact.model.read_bytes()
    assert [*tmp_path.iterdir()] == [tmp_path / "models"] and [*(tmp_path / "models").iterdir()] == [
        tmp_path / "models" / "net"
    ]
    config = read(tmp_path / "models" / "net" / "config.pbtxt")
    assert (config.name, config.platform, config.backend) == ("net", "onnxruntime_onnx", "")
    (given,), (output,) = config.input, config.output
    assert (given.name, _config._TYPES[given.data_type], [*given.dims]) == ("input", "FP32", [3, 16, 16])
    assert (output.name, [*output.dims], output.label_filename) == ("output", [5], "")
    assert config.max_batch_size == 8 and [*config.dynamic_batching.preferred_batch_size] == [4, 8]
    assert [one.batch_size for one in config.model_warmup] == [1, 4, 8]
    assert all(
        entry.value.zero_data and [*entry.value.dims] == [3, 16, 16]
        for one in config.model_warmup
        for entry in one.inputs
    )
    (group,) = config.instance_group
    assert (group.count, _config._ENUMS["Kind"][group.kind]) == (2, "KIND_CPU")
    assert not config.HasField("optimization") and not config.parameters


def test_versions_are_added_and_what_somebody_changed_stays(artifact: Artifact, tmp_path: Path) -> None:
    triton.add(artifact, tmp_path, Wanted("net"))
    path = tmp_path / "net" / "config.pbtxt"
    path.write_text(path.read_text() + 'version_policy { all { } } # both\nmetric_tags { key: "a" value: "b" }\n')
    (tmp_path / "net" / "7").mkdir()
    (tmp_path / "net" / "notes").mkdir()
    before = tree(tmp_path)
    found = triton.add(artifact, tmp_path, Wanted("net", instances=3))
    assert found["version"] == 8 and found["files"] == ["8/model.onnx"] and "stays as it was" in found["notes"][0]
    assert tree(tmp_path) == before | {"net/8/model.onnx": artifact.model.read_bytes()}


@pytest.mark.parametrize(
    ("wanted", "changes", "line"),
    [
        (Wanted("net", kind="python"), {}, "has platform onnxruntime_onnx, and this engine none"),
        (Wanted("net"), {"batch": [1, 4, 16]}, "has max_batch_size 8, and this engine 16"),
        (Wanted("net"), {"batch": [8, 8, 8]}, "has max_batch_size 8, and this engine 0"),
        (
            Wanted("net"),
            {"inputs": PORTS["outputs"]},
            r"has input input FP32 \[3, 16, 16\], and this engine output FP32",
        ),
        (Wanted("net"), {"outputs": [PORTS["outputs"][0] | {"shape": [6]}]}, r"has output output FP32 \[5\], and"),
        (Wanted("net", labels=Path("labels")), {}, "has labels none, and this engine output"),
    ],
)
def test_a_version_that_does_not_fit_is_refused_and_nothing_is_written(
    artifact: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: Wanted,
    changes: dict[str, Any],
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("labels").write_text("a\nb\nc\nd\ne\n")
    triton.add(artifact, tmp_path / "models", Wanted("net"))
    before = tree(tmp_path / "models")
    other = made_up(artifact, tmp_path / "other", "onnxruntime", **changes)
    with pytest.raises(InputError, match=f"config.pbtxt {line}.*: give another --model-name"):
        triton.add(other, tmp_path / "models", wanted)
    assert tree(tmp_path / "models") == before


def test_a_model_that_cannot_be_read_is_left_alone(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    for content in (None, "name: ", 'name: "x" max_batch_size: "y"', "\udcff"):
        if content is not None:
            (tmp_path / "net" / "config.pbtxt").write_bytes(content.encode(errors="surrogateescape"))
        before = tree(tmp_path)
        with pytest.raises(InputError, match=r"config\.pbtxt cannot be read .*: give another --model-name"):
            triton.add(artifact, tmp_path, Wanted("net"))
        assert tree(tmp_path) == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="cannot be written"):
        triton.add(artifact, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_labels_lie_beside_the_configuration(artifact: Artifact, tmp_path: Path) -> None:
    labels = tmp_path / "labels.json"
    labels.write_text('["tench", "great\\nwhite", "", "\\u00e9", "e"]')
    wanted = Wanted("net", labels=labels)
    assert triton.add(artifact, tmp_path / "models", wanted)["files"][:2] == ["config.pbtxt", "labels.txt"]
    assert (tmp_path / "models" / "net" / "labels.txt").read_text("utf-8") == "tench\ngreat white\n\né\ne\n"
    assert read(tmp_path / "models" / "net" / "config.pbtxt").output[0].label_filename == "labels.txt"
    assert triton.add(artifact, tmp_path / "models", wanted)["version"] == 2
    labels.write_text('["a", "b", "c", "d", "e"]')
    with pytest.raises(InputError, match="has other labels"):
        triton.add(artifact, tmp_path / "models", wanted)
    assert triton.add(artifact, tmp_path / "models", Wanted("net"))["version"] == 3
    labels.write_text('["a"]')
    with pytest.raises(InputError, match="has 1 labels, and the network 5 classes"):
        triton.add(artifact, tmp_path / "others", wanted)
    other = made_up(artifact, tmp_path / "map", "onnxruntime")
    other.manifest["recipe"]["classes"] = None
    with pytest.raises(InputError, match="gives no single row of scores"):
        triton.add(other, tmp_path / "others", wanted)
    assert not (tmp_path / "others").exists()


@pytest.mark.parametrize(
    ("batch", "largest", "dims", "preferred", "warm"),
    [
        ([1, 1, 1], 1, [3, 16, 16], [], [1]),
        ([1, 8, 8], 8, [3, 16, 16], [8], [1, 8]),
        ([4, 4, 4], 0, [4, 3, 16, 16], [], [0]),
        ([2, 4, 8], 0, [-1, 3, 16, 16], [], [0, 0, 0]),
    ],
)
def test_batches(
    artifact: Artifact,
    tmp_path: Path,
    batch: list[int],
    largest: int,
    dims: list[int],
    preferred: list[int],
    warm: list[int],
) -> None:
    found = triton.add(
        made_up(artifact, tmp_path / "one", "onnxruntime", batch=batch), tmp_path / "models", Wanted("net")
    )
    config = read(tmp_path / "models" / "net" / "config.pbtxt")
    assert config.max_batch_size == largest and [*config.input[0].dims] == dims
    assert [*config.dynamic_batching.preferred_batch_size] == preferred
    assert config.HasField("dynamic_batching") == bool(preferred)
    assert [one.batch_size for one in config.model_warmup] == warm
    rows = [one.inputs[0].value.dims[0] for one in config.model_warmup]
    assert rows == (sorted({*batch}) if batch[0] > 1 else [3] * len(warm))
    assert ["Triton batches no requests for it" in line for line in found["notes"]] == [True] * (batch[0] > 1)


def test_a_single_number_of_each_row_has_an_axis_for_clients(artifact: Artifact, tmp_path: Path) -> None:
    scalar = [{"name": "score", "shape": [], "dtype": "int64"}]
    triton.add(made_up(artifact, tmp_path / "one", "onnxruntime", outputs=scalar), tmp_path / "models", Wanted("net"))
    (output,) = read(tmp_path / "models" / "net" / "config.pbtxt").output
    assert [*output.dims] == [1] and output.HasField("reshape") and not output.reshape.shape
    assert _config._TYPES[output.data_type] == "INT64"


@pytest.mark.parametrize("name", ["a b", "a/b", "../x", ".hidden", "-x", "é", "."])
def test_names_that_are_no_address_are_refused(artifact: Artifact, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="give letters, digits, and _"):
        triton.add(artifact, tmp_path / "models", Wanted(name))
    assert not (tmp_path / "models").exists()
    assert triton.add(artifact, tmp_path / "models", Wanted("v1.2_x-y"))["model"] == "v1.2_x-y"


def test_exports_at_once_each_have_a_version(artifact: Artifact, tmp_path: Path) -> None:
    found: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(triton.add(artifact, tmp_path / "models", Wanted("net"))["version"])
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [*range(1, 9)]
    assert {*tree(tmp_path)} == {"models/net/config.pbtxt", *(f"models/net/{one}/model.onnx" for one in found)}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_is_interrupted_leaves_nothing(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    triton.add(artifact, tmp_path / "models", Wanted("net"))
    before = tree(tmp_path)

    def broken(one: Artifact, name: str, target: Path) -> None:
        target.write_bytes(b"half")
        raise error

    monkeypatch.setattr(triton, "copy_file", broken)
    for name in ("net", "new"):
        with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else InputError):
            triton.add(artifact, tmp_path / "models", Wanted(name))
    assert tree(tmp_path) == before and len([*tmp_path.rglob("*")]) == 5


def test_where_nothing_can_be_written_beside_it_drafts_lie_in_the_repository(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    monkeypatch.setattr(triton, "copy_file", lambda one, name, target: seen.append(target))
    triton.add(artifact, tmp_path / "models", Wanted("net"))
    assert seen[0].parent.parent.parent == tmp_path / "models" and seen[0].parent.parent.name.startswith(".net.")
    assert {*tree(tmp_path)} == {"models/net/config.pbtxt"}


KILLED = """
import os, signal, sys
from pathlib import Path
from mlpdeploy.artifact import store
from mlpdeploy.export import folders, triton
folders._rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
triton.add(store.open_artifact(Path(sys.argv[1])), Path("models"), triton.Wanted(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_no_model_and_no_version(artifact: Artifact, tmp_path: Path) -> None:
    triton.add(artifact, tmp_path / "models", Wanted("net"))
    for name in ("net", "new"):
        words = [sys.executable, "-c", KILLED, str(artifact.folder), name]
        done = subprocess.run(words, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
        assert done.returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["net"] and len([*tmp_path.rglob(".*")]) == 2
    assert [path.name for path in (tmp_path / "models" / "net").iterdir() if path.name.isdecimal()] == ["1"]
    assert triton.add(artifact, tmp_path / "models", Wanted("net"))["version"] == 2
    assert triton.add(artifact, tmp_path / "models", Wanted("new"))["version"] == 1
    assert not [*tmp_path.rglob(".*")]
