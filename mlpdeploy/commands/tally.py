"""What an evaluation has counted so far, in memory and on the disk: whoever is interrupted goes on where it ended."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy.artifact import schema, store
from mlpdeploy.errors import ArtifactError, InputError
from mlpdeploy.evidence.documents.evaluation import ENGINE, PYTORCH, SHOWN, Contender, Evaluation
from mlpdeploy.evidence.proof.accuracy import NOT_FINITE, TOP, UNREAD, Paired, Share
from mlpdeploy.progress import Stages
from mlpdeploy.system import documents

AGREED = "agreed"


@dataclass
class Tally:
    """For each image the place of its right class in each contender's scores, and whether engine and PyTorch agree.

    `marks` (contenders and AGREED, images) uint8 are UNREAD where no image was; the first `done` images are finished.
    """

    names: Sequence[str]
    marks: np.ndarray
    done: int = 0
    skipped: dict[str, str] = field(default_factory=dict)

    @classmethod
    def empty(cls, names: Sequence[str], images: int) -> Tally:
        """One of so many images, of which none is finished."""
        return cls(names, np.full((len(names) + 1, images), UNREAD, np.uint8))

    @property
    def left(self) -> bool:
        """Whether there are images that are not finished."""
        return self.done < len(self.marks[0])

    @property
    def unread(self) -> int:
        """How many images could not be read, or are not finished."""
        return int((self.marks[0] == UNREAD).sum())

    def evaluation(self, data: Sequence[str]) -> Evaluation:
        """What it amounts to. At least one image must have been read."""
        read = {name: marks[marks != UNREAD] for name, marks in zip((*self.names, AGREED), self.marks, strict=True)}
        count = len(read[self.names[0]])
        right = {name: read[name] == 0 for name in self.names}
        contenders = (
            Contender(
                name, Share(int(right[name].sum()), count), Share(int((read[name] < TOP).sum()), count),
                int((read[name] == NOT_FINITE).sum()),
            )
            for name in self.names
        )  # fmt: skip
        paired = agreement = None
        if {ENGINE, PYTORCH} <= right.keys():
            engine, pytorch = right[ENGINE], right[PYTORCH]
            paired = Paired(int((engine & ~pytorch).sum()), int((pytorch & ~engine).sum()))
            agreement = Share(int(read[AGREED].sum()), count)
        return Evaluation(tuple(contenders), count, self.unread, self.skipped, tuple(data), paired, agreement)


class Kept:
    """The file beside an artifact in which a tally is kept while its evaluation is under way.

    `about` has, by its name, everything that the tally depends on.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], stages: Stages) -> None:
        self.path = folder.parent / f".{folder.name}.evaluation.json"
        self.about: dict[str, Any] = json.loads(json.dumps(about))
        self.stages, self.refused = stages, False

    def read(self, empty: Tally) -> Tally:
        """The tally that is kept, where it is about the same; else the `empty` one, and why is said."""
        try:
            found = documents.read(self.path, schema.TALLY)
            if found is None:
                return empty
            other = [name for name, value in self.about.items() if found["about"].get(name) != value]
            if other:
                self.stages.say(f"the evaluation that was begun is not gone on with: other {' and '.join(other)} now")
                return empty
            marks = np.frombuffer(zlib.decompress(base64.b64decode(found["marks"])), np.uint8)
            tally = Tally(empty.names, marks.reshape(empty.marks.shape).copy(), found["done"], found["skipped"])
            if tally.done > len(tally.marks[0]):
                raise ValueError("more is finished than there is")
        except (ArtifactError, ValueError, zlib.error) as error:
            self.stages.say(f"the evaluation that was begun is not gone on with: {error}")
            return empty
        self.stages.say(f"{tally.done} of {len(tally.marks[0])} images were finished before: going on behind them")
        return tally

    def write(self, tally: Tally) -> None:
        """Keep a tally, whole or not at all; where that cannot be, it is said once."""
        document = {
            "about": self.about, "done": tally.done, "skipped": dict([*tally.skipped.items()][:SHOWN]),
            "marks": base64.b64encode(zlib.compress(tally.marks.tobytes())).decode(),
        }  # fmt: skip
        try:
            store.place(self.path, json.dumps(document))
        except InputError as error:
            if not self.refused:
                self.stages.warn(f"an interrupted evaluation will begin anew: {error}")
            self.refused = True

    def forget(self) -> None:
        """Remove the file: the evaluation is finished."""
        with suppress(OSError):
            self.path.unlink()
