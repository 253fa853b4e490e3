"""What an evaluation found: how often each form of a network is right, and whether the engine is worse than PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlpdeploy.evidence.proof.accuracy import SIGNIFICANCE, Paired, Share

ENGINE, TYPED, PYTORCH = "engine", "typed graph", "PyTorch"
SHOWN = 20
"""Images that could not be read of which a document says why."""


@dataclass(frozen=True)
class Contender:
    """A form of the network: how often the right class is its first and among its first five, on how many images its
    scores were not all finite, which are wrong."""

    name: str
    top1: Share
    top5: Share
    not_finite: int

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        shares = {
            name: {"right": share.right, "share": share.value, "low": share.interval[0], "high": share.interval[1]}
            for name, share in (("top1", self.top1), ("top5", self.top5))
        }
        return {"name": self.name, **shares, "not_finite": self.not_finite}


@dataclass(frozen=True)
class Evaluation:
    """The contenders on the same images, of which so many could be read; of the others the first are in `skipped`.

    `paired` and `agreement`, the share of images on which both see the same class first, are of the engine and PyTorch;
    None where one of them was left out. `data` says what was evaluated on, line by line.
    """

    contenders: tuple[Contender, ...]
    images: int
    unread: int
    skipped: Mapping[str, str]
    data: tuple[str, ...]
    paired: Paired | None = None
    agreement: Share | None = None

    def __repr__(self) -> str:
        return f"<Evaluation on {self.images} images: {self.verdict()}>"

    def __getitem__(self, name: str) -> Contender:
        return next(one for one in self.contenders if one.name == name)

    @property
    def passed(self) -> bool:
        """Whether the engine is not significantly worse than PyTorch; true where the two were not compared."""
        return self.paired is None or not self.paired.worse

    def verdict(self) -> str:
        """One line: whether the engine is right less often than PyTorch."""
        if self.paired is None:
            return "the engine and PyTorch were not compared"
        told = f"p = {self.paired.p_value:.2g}"
        if self.paired.worse:
            return f"the engine is right less often than PyTorch ({told})"
        if self.paired.p_value < SIGNIFICANCE:
            return f"the engine is right more often than PyTorch ({told})"
        return f"passed: no difference between the engine and PyTorch is found ({told})"

    def to_json(self) -> dict[str, Any]:
        """The document that `evaluation.json` holds."""
        paired = None if self.paired is None else {
            "engine_only": self.paired.first, "pytorch_only": self.paired.second, "p_value": self.paired.p_value,
        }  # fmt: skip
        return {
            "passed": self.passed,
            "verdict": self.verdict(),
            "images": self.images,
            "data": list(self.data),
            "contenders": [one.to_json() for one in self.contenders],
            "agreement": None if self.agreement is None else self.agreement.value,
            "paired": paired,
            "unread": self.unread,
            "skipped": [{"file": file, "reason": reason} for file, reason in [*self.skipped.items()][:SHOWN]],
        }
