"""Engines and other processes: they work there, or say in one line why not; a child takes nothing from its parent."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

import mlpdeploy
from mlpdeploy.errors import ArtifactError
from tests.artifact.test_store import write
from tests.evidence.examples import whole
from tests.warm import Warm

PROGRAM = """
import gc, multiprocessing, os, sys
import torch
import mlpdeploy
from mlpdeploy.errors import InputError
from tests.test_api import Net, images

def same(engine, x, expected):
    assert torch.equal(engine(x), expected)

def forked(body):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = body()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def used_before(engine):
    try:
        engine(images(2))
    except InputError as error:
        assert len(str(error).splitlines()) == 1 and "forked" in str(error)
    else:
        return 2
    engine.close()
    return 0

def dropped(engines):
    engines.clear()
    gc.collect()
    return 0

def unused_before(path):
    return 0 if len(mlpdeploy.load(path)(images(2))) == 2 else 2

if __name__ == "__main__":
    path = sys.argv[1]
    if len(sys.argv) > 2:
        assert forked(lambda: unused_before(path)) == 0
        sys.exit()
    engines = [mlpdeploy.compile(Net(), images(1), precision="fp32", backend="onnxruntime", batch="1:2:4")]
    expected = engines[0](images(2))
    assert forked(lambda: used_before(engines[0])) == 0
    assert forked(lambda: dropped(engines)) == 0 and engines[0].folder.exists()
    spawned = multiprocessing.get_context("spawn").Process(target=same, args=(engines[0], images(2), expected))
    spawned.start()
    spawned.join()
    assert spawned.exitcode == 0
    assert engines[0].folder.exists() and torch.equal(engines[0](images(2)), expected)
    engines[0].save(path)
    folder = engines.pop().folder
    gc.collect()
    assert not folder.exists()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_and_spawned_processes(tmp_path: Path, warm: Warm) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    for more in ([], ["unused before the fork"]):
        found = warm.run([str(tmp_path / "program.py"), str(tmp_path / "saved"), *more], tmp_path)
        assert found.returncode == 0, found.stderr


def test_a_pickled_engine_is_that_of_its_folder(tmp_path: Path) -> None:
    artifact = write(tmp_path / "artifact", **whole(engine="engine.bin"))
    engine = mlpdeploy.Engine(artifact, trusted=True)
    data = pickle.dumps(engine)
    again = pickle.loads(data)
    assert again.folder == engine.folder and again.manifest == engine.manifest and again._trusted
    write(artifact.folder, b"another", **whole(engine="engine.bin", created="later"))
    with pytest.raises(ArtifactError, match="was replaced"):
        pickle.loads(data)
    with pytest.raises(ArtifactError, match="was replaced"):
        engine(torch.zeros(1, 8))
