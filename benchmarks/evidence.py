"""What `make gpu` says last of the validation and of the case that fragments."""

from __future__ import annotations

from typing import Any

PEAKS = {"allocated_peak": "allocated", "reserved_peak": "reserved"}


def validation_lines(document: dict[str, Any]) -> list[str]:
    """How many cases are within, and the largest error of each kind."""
    cases = document["cases"]
    within = sum(case["status"] == "within" for case in cases)
    lines = [f"validated    {within} of {len(cases)} cases within the tolerances"]
    for kind in ("planned", "simulated"):
        for name, word in PEAKS.items():
            peaks = [peak for case in cases for peak in case["peaks"] if peak["name"] == name]
            ratios = [peak[f"{kind}_vs_measured"] for peak in peaks]
            errors = [abs(ratio) for ratio in ratios if ratio is not None]
            if errors:
                lines.append(f"{kind} against measured, {word}: {max(errors):.3%} at most")
    return lines


def fragmentation_lines(results: list[dict[str, Any]]) -> list[str]:
    """Reserved and not allocated at the peak, simulated and measured, by setting."""
    lines = []
    for result in results:
        kinds = [f"{kind} {result[kind]['fragmentation']['ratio']:.1%}"
                 for kind in ("simulated", "measured")
                 if result[kind] and result[kind]["fragmentation"]]  # fmt: skip
        conf = result["profile"]["allocator"]["conf"] or "default"
        lines.append(f"fragmentation, {conf}: {', '.join(kinds) or 'no figures'}")
    return lines
