"""A folder from which jobs are sent away, and the store that their artifacts come to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlpdeploy.artifact import store
from mlpdeploy.artifact.depot import Folder
from mlpdeploy.matrix import plan
from mlpdeploy.matrix.elsewhere import Came, sent, work
from mlpdeploy.matrix.executor import Running
from mlpdeploy.matrix.job import Job
from tests.evidence.examples import FACTS, whole

PLACE = "cam_1d_cam/fp32/onnxruntime"


class Counting(Folder):
    """A depot that remembers what came."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.came: list[str] = []

    def put(self, path: Path, place: str) -> None:
        super().put(path, place)
        self.came.append(place)


class Away:
    """A folder from which jobs are sent, and the store that their artifacts come to."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        self.depot = Counting(folder / "depot")
        self.told: list[Running] = []
        self.behave()
        (folder / "manifest.json").write_text(json.dumps({"schema": store.SCHEMA, "files": {}} | whole(facts=FACTS)))

    def behave(self, **how: list[str]) -> None:
        """What commands do with the network: `build=["waits", "passed"]`."""
        split = {f"{command} cam_1d_cam": each for command, each in how.items()}
        (self.folder / "behaviour.json").write_text(json.dumps(split))

    def job(self, text: str = "") -> Job:
        """The one job of a plan."""
        named = f'network = "cam_1d_cam"\nprecision = "fp32"\nbackend = "onnxruntime"\nout = "out"\n{text}'
        (self.folder / "plan.toml").write_text(named)
        (job,) = plan.read(self.folder / "plan.toml").jobs
        return job

    def work(self, text: str = "", **changes: Any) -> Came:
        """Do what is sent, here."""
        depot = changes.pop("depot", self.depot)
        asked = replace(sent(self.job(text), Path("out"), 0), threads=None)
        return work(replace(asked, **changes), depot, self.told.append)

    def commands(self) -> list[list[str]]:
        """What commands told as they began: name, network, threads, PYTHONPATH, process."""
        path = self.folder / "told.txt"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []
