"""A trial that is killed, wherever, ends as one that never was: same values, same weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from kill_points import EPOCH, POINTS
from shell import Shell

EPOCHS = 5
pytestmark = pytest.mark.skipif(
    "STUDYHALL_TEST_CHAOS" not in os.environ, reason="slow: run it by make chaos"
)


def trained(shell: Shell, folder: Path, study: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The trials of a study of five tiny trainings, and what their weights came to."""
    weights = folder / f"{study}-weights"
    weights.mkdir()
    shell.environment["KILL_WEIGHTS"] = str(weights)
    words = ["--study", study, "--trials", str(len(POINTS)), "--workers", "2", "--seed", "7"]
    words += ["--data", "synthetic", "--set", "train_size=640", "--set", "batch_sizes=32"]
    words += ["--set", f"epochs={EPOCHS}", "--set", "patience=none", "--pruner", "none"]
    shell("run", "kill_points:mlp", *words)
    rows = shell.json("trials", study, "--format", "json")
    return rows, [(weights / str(row["number"])).read_text() for row in rows]


def test_killed_at_any_point_it_comes_to_the_same_bits(shell: Shell, tmp_path: Path) -> None:
    shell.environment["STUDYHALL_CACHE"] = str(tmp_path / "cache")
    undisturbed, expected = trained(shell, tmp_path, "undisturbed")
    markers = tmp_path / "markers"
    markers.mkdir()
    shell.environment["KILL_MARKERS"] = str(markers)
    killed, weights = trained(shell, tmp_path, "killed")

    assert sorted(marker.name for marker in markers.iterdir()) == ["0", "1", "2", "3", "4"]
    for row, same in zip(killed, undisturbed, strict=True):
        assert (row["state"], row["attempts"], same["attempts"]) == ("complete", 2, 1)
        assert row["intermediate_values"] == same["intermediate_values"]
        assert (row["params"], row["value"]) == (same["params"], same["value"])
        assert [attempt["cause"] for attempt in row["history"]] == ["lost", None]
    assert weights == expected
    epochs = {
        point: [attempt["epochs"] for attempt in row["history"]]
        for point, row in zip(POINTS, killed, strict=True)
    }
    # At most the epoch that was cut short, or whose checkpoint was, is trained twice.
    assert all(sum(both) in (EPOCHS, EPOCHS + 1) for both in epochs.values()), epochs
    assert epochs["saved"] == [EPOCH + 1, EPOCHS - EPOCH - 1]
    assert epochs["saving"][1] == EPOCHS - EPOCH
