"""The tables of what a GPU has shown, and what they say of each aim."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.gpu import report, timer
from mlpdeploy.evidence.latency.timing import Timings


def rows() -> dict[str, Any]:
    """One projection that memory bounds, one that arithmetic bounds, and two networks."""

    def times(**seconds: float) -> dict[str, Any]:
        taken = Timings({name: np.full(9, value) for name, value in seconds.items()}, dict.fromkeys(seconds, 1), 0)
        return timer.row(taken, next(iter(seconds)))

    kernel = {"operation_uses": "the kernel"}
    others = dict(zip((*report.RIVALS, report.WITHOUT), (3e-2, 2.8e-2, 1.4e-2, 1.2e-2), strict=True))
    network = {"errors": {"eager": None, "compile": 1e-3, "ours": 1e-3}, "images_per_second": {"ours": 12800.0}}
    return {
        "roofline": {"bytes_per_second": 1e12, "operations_per_second": 1e15},
        "kernel vip a batch 32": {
            **kernel, "bytes": 1e6, "operations": 1e8,
            "times": times(kernel=2e-6, eager=6e-6, compile=4e-6, gemm=1.8e-6),
        },
        "kernel raft b batch 128": {
            **kernel, "bytes": 1e6, "operations": 1e10,
            "times": times(kernel=2e-5, eager=6e-5, compile=2e-5, gemm=1e-5),
        },
        "network vip_s7 batch 128": {"times": times(ours=1e-2, **others), **network},
        "network vip_s7 batch 128 max-autotune": {
            "times": times(ours=1e-2, **{"compile max-autotune": 1.3e-2, "ours max-autotune": 9e-3}),
        },
        "network swin_t batch 8": {
            "times": times(ours=1e-2, **others | {"compile": 9e-3}), "left": [report.WITHOUT], **network,
        },
        "rules vip_s7 batch 128": {
            "times": times(ours=1e-2, **{"without a": 9e-3, "with b": 2e-2, "searched": 8e-3}),
            "searched": ["without a"], "failed_changes": {"with c": "it ended"}, "left": ["with d"],
        },
        "epilogues vip_s7 batch 128": {
            "times": times(ours=1e-2, epilogues=8e-3), "errors": {"ours": 1e-3, "epilogues": 2e-3},
        },
        "epilogues mixer_b16 batch 8": {
            "times": times(ours=1e-3, **{"activated": 9e-4, "token MLPs": 8e-4}),
            "errors": {"ours": 1e-3, "activated": 2e-3, "token MLPs": 3e-3},
        },
        "epilogues gmixer_24 batch 1": {"nothing": "none of the rules fires"},
        "commands inductor vip_s7": {
            "commands": {
                "build": {"exit": 0, "seconds": 61.0, "engine_bytes": 5},
                "verify": {"exit": 1, "seconds": 9.0, "verdict": "failed", "first_failed": "engine", "failed": "it"},
                "bench": {"exit": 0, "seconds": 9.0, "ratios": {"eager": {"value": 0.5, "verdict": "faster"}}},
                "regress": {"exit": None, "seconds": 240.0, "failed": "took longer than 240 s"},
            },
            "left": ["report"],
        },
    }  # fmt: skip


def test_the_report_names_what_was_found_of_each_aim() -> None:
    found = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1] for line in report.claims(rows())[2:]}
    vip, raft, compiled, best, at_128, at_8, at_1, bf16, searched = found.values()
    assert vip == "1.11 at worst (vip a batch 32), 1 measured |"
    assert raft == "2.00 at worst (raft b batch 128), 1 measured |"
    assert compiled == "2.00 at worst (vip a batch 32), 1 measured |"
    assert best == "1.08; 0.90 at worst (swin_t batch 8), 2 measured of 48 |"  # max-autotune was 1.3, compile 1.4
    assert at_128 == "1.30; 1.30 at worst (vip_s7 batch 128), 1 measured of 16 |"
    assert at_8 == "0.90; 0.90 at worst (swin_t batch 8), 1 measured of 16 |"
    assert at_1 == bf16 == f"{report.NOT_YET} |"
    assert searched == "1.62; 1.62 at worst (vip_s7 batch 128), 1 measured of 16 |"


def test_the_report_has_a_line_for_each_thing_that_was_measured() -> None:
    (line,) = [line for line in report.kernels(rows()) if "a batch 32" in line]
    assert line == "| vip a batch 32 | 2 | 1.11 | 3.00 | 2.00 | 1 (memory) | the kernel |"
    errors = "not finite / 1e-03 / 1e-03"
    assert report.networks(rows())[2:] == [
        f"| vip_s7 batch 128 | 10.000 | 12800 | 3.00 | 2.80 | 1.40 | 1.20 | 1.30 | 1.62 | {errors} |",
        f"| swin_t batch 8 | 10.000 | 12800 | 3.00 | 2.80 | 0.90 | 1.20 | 0.90 |  | {errors} |",
    ]
    assert report.tuned(rows())[2:] == ["| vip_s7 batch 128 | 10.000 | 1.30 | 0.90 |"]
    assert report.rules(rows())[2:] == [
        "| vip_s7 batch 128 | without a | 0.90 |",
        "| vip_s7 batch 128 | with b | 2.00 |",
        "| vip_s7 batch 128 | searched (without a) | 0.80 |",
        "| vip_s7 batch 128 | with c | failed: it ended |",
        f"| vip_s7 batch 128 | with d | {report.NOT_YET} |",
    ]
    assert report.epilogues(rows())[2:] == [
        "| vip_s7 batch 128 | 10.000 | epilogues | 0.80 | 1e-03 / 2e-03 |",
        "| mixer_b16 batch 8 | 1.000 | activated | 0.90 | 1e-03 / 2e-03 |",
        "| mixer_b16 batch 8 | 1.000 | token MLPs | 0.80 | 1e-03 / 3e-03 |",
        "| gmixer_24 batch 1 |  | none of the rules fires |  |  |",
    ]
    assert report.commands(rows())[2:] == [
        "| inductor vip_s7 | build | 0 | 61.0 | engine of 5 bytes |",
        "| inductor vip_s7 | verify | 1 | 9.0 | failed, engine, it |",
        "| inductor vip_s7 | bench | 0 | 9.0 | 0.50 of eager's time |",
        "| inductor vip_s7 | regress |  | 240.0 | took longer than 240 s |",
    ]
