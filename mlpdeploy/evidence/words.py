"""An artifact's INT8 in words, for the terminal and for report.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def int8_facts(int8: Mapping[str, Any]) -> dict[str, str]:
    """The manifest's `int8` in words."""
    tried = ", ".join(f"{name} {db:.1f} dB" for name, db in int8["sqnr_db"].items())
    rows = {
        "INT8": f"{int8['sites']} of {int8['of_sites']} products that can take it, {int8['share_of_macs']:.1%} of "
        f"their multiply-accumulates; all else {int8['beside'].upper()}",
        "calibrated": f"on {int8['data']}, calibrator {int8['calibrator']} ({tried})",
    }
    if int8["equalised"]:
        rows["equalised"] = f"{int8['equalised']} operations"
    if int8.get("residuals"):
        rows["residuals"] = f"{int8['residuals']} additions after a convolution read INT8"
    if int8["kept"]:
        names = [one["module"] or one["node"] for one in int8["kept"]]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        rows["kept from INT8"] = ", ".join(names[:5]) + more
    if int8.get("worth"):
        rows["worth it"] = "; ".join(int8["worth"]["verdicts"])
    if int8["warning"]:
        rows["warning"] = int8["warning"]
    return rows
