"""Shards: together all jobs, each in one, and alike in size; and the words that ask for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlpdeploy.errors import InputError
from mlpdeploy.matrix import plan, shards
from mlpdeploy.zoo.recipe import recipes


@pytest.mark.parametrize("count", [1, 2, 5, 16, 100])
def test_every_job_is_in_one_shard_and_shards_are_alike(count: int, tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text('network = ["mixer_*", "vip_*", "nets:make"]\nprecision = ["fp32", "fp16", "bf16"]')
    jobs = plan.read(path).jobs
    parts = [shards.part(jobs, index, count) for index in range(1, count + 1)]
    assert sorted(job.name for part in parts for job in part) == sorted(job.name for job in jobs)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert all([job for job in jobs if job in part] == list(part) for part in parts)
    work = [
        sum(recipes()[job.selection.name].gmacs or 0 for job in part if ":" not in job.selection.name) for part in parts
    ]
    most = max(recipes()[job.selection.name].gmacs or 0 for job in jobs if ":" not in job.selection.name)
    assert max(work) - min(work) <= most


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "1/2/3", "-1/4", "1.5/4", "1/100000000000", ""])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="give INDEX/COUNT"):
        shards.parse(text)


def test_a_shard_is_counted_from_one() -> None:
    assert shards.parse("3/16") == (3, 16) and shards.parse("16/16") == (16, 16)
