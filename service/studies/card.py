"""The card of an exported model: what it is, how it was found, and what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.studies.progress import mark

LOAD = """```python
import keras

model = keras.saving.load_model("model.keras")
model.predict(x)  # raw inputs, as `load` of the objective returns them
```"""
EXPLANATION = (
    "What the trial recorded at its best epoch, and what this file gives when it is loaded in a "
    "fresh process. Choosing the best of many trials makes the recorded value optimistic: the "
    "test result, or `studyhall confirm`, says what to expect."
)
REFITTED = (
    "This is a refit: the model was trained on the validation part, too. Its validation metrics "
    "only prove that the file is the model that was trained; they say nothing of new data."
)
UNOPENED = "The test set has not been opened. `studyhall evaluate` measures the winner on it once."
LOAD_WEIGHTS = "The file has the weights only: `model.load_weights(...)` of the objective's model."


def write(content: Mapping[str, Any], folder: Path) -> None:
    """Write ``card.md``, ``card.json`` and ``curve.png`` into a folder.

    Args:
        content: What ``card.json`` is to hold.
        folder: Where the model is.
    """
    _draw(content["curve"], content["monitor"], folder / "curve.png")
    (folder / "card.json").write_text(json.dumps(content, indent=2, default=str) + "\n")
    (folder / "card.md").write_text(_markdown(content))


def _draw(curve: Mapping[str, float], monitor: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([int(step) for step in curve], list(curve.values()), marker="o", markersize=3)
    axes.set_xlabel("epoch")
    axes.set_ylabel(monitor)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _markdown(card: Mapping[str, Any]) -> str:
    trial, search, shown = card["trial"], card["search"], mark(card["synthetic"])
    at = "" if trial["epoch"] is None else f" at epoch {trial['epoch']}"
    parts = [
        f"# {card['study']}: trial {card['number']}",
        (
            f"{_place(card)} of {search['complete']} complete trials ({search['pruned']} pruned, "
            f"{search['failed']} failed) of `{card['objective']}`: {card['monitor']} "
            f"**{trial['value']:.6g}**{shown}{at}, {_wording(card['direction'])}."
        ),
        LOAD if card["model"]["file"].endswith(".keras") else LOAD_WEIGHTS,
        (
            f"`{card['model']['file']}`: {card['model']['bytes']:,} bytes, "
            f"SHA-256 `{card['model']['sha256']}`"
        ),
        "## Parameters",
        _table(("parameter", "value"), trial["params"].items()),
        "## Validation",
        "![the curve of the trial](curve.png)",
        REFITTED if card["settings"].get("refit") else EXPLANATION,
        _table(
            ("metric", "recorded", "reproduced"),
            (
                (name, _number(value), _number(card["reproduced"].get(name)))
                for name, value in card["recorded"].items()
            ),
        ),
        "## Confirmation",
        _confirmation(card),
        "## Test",
        _test(card),
        "## Data",
        _data(card["data"]),
        "## Provenance",
        _provenance(card["provenance"]),
    ]
    return "\n\n".join(parts) + "\n"


def _place(card: Mapping[str, Any]) -> str:
    if card["confirmation"] is None:
        return "The best"
    run = f"trial {card['trial']['number']} of {card['confirmation']['linked']}"
    return f"The winner of a confirmation (this is its median run, {run}) among the best"


def _wording(direction: str) -> str:
    return "higher is better" if direction == "maximize" else "lower is better"


def _confirmation(card: Mapping[str, Any]) -> str:
    found = card["confirmation"]
    if found is None:
        return (
            "The best trials have not been confirmed on fresh seeds: `studyhall confirm` does so."
        )
    rows = (
        (
            one["number"],
            *(_number(one[key]) for key in ("mean", "std", "low", "high", "p_best", "tuned")),
            _number(one["drop"]),
            one["complete"],
        )
        for one in found["candidates"]
    )
    header = ("trial", "mean", "std", "low", "high", "P(best)", "tuned", "drop", "runs")
    return "\n\n".join(
        [
            (
                f"The best trials were trained again on {found['seeds']} fresh seeds. Trial "
                f"{card['number']} won on validation alone; the model is that of its median run."
            ),
            _table(header, rows),
            (
                f"Low and high: {found['interval']}. Drop: the winner's curse, by how much the "
                "tuned value was better than the mean."
            ),
        ]
    )


def _provenance(document: Mapping[str, Any] | None) -> str:
    if document is None:
        return "It was not recorded."
    names = ("git", "python", "packages", "host", "system", "device", "seed", "command")
    rows = ((name, _flat(document[name])) for name in names if document.get(name) is not None)
    return _table(("what", "value"), rows)


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flat(item)}" for key, item in value.items())
    return str(value)


def _test(card: Mapping[str, Any]) -> str:
    openings = [row for row in card["test"] if row["result"] is not None]
    if not openings:
        return UNOPENED
    times = "once" if len(openings) == 1 else f"**{len(openings)} times**"
    parts = [f"The test set was opened {times}."]
    for row in openings:
        result = row["result"]
        which = "this model" if row["of_this_model"] else "another model than this one"
        parts.append(
            f"{row['opened_at'][:16]} by {row['who']}: trial {row['number']} ({which}) on "
            f"{result['n']:,} examples: "
            + ", ".join(f"{name} {value:.6g}" for name, value in result["metrics"].items())
            + mark(card["synthetic"])
        )
        if classes := result.get("classes"):
            parts.append(_classes(classes))
    return "\n\n".join(parts)


def _classes(classes: Mapping[str, Any]) -> str:
    low, high = classes["interval"]
    rows = (
        (row["label"], row["n"], *(_number(row[key]) for key in ("precision", "recall", "f1")))
        for row in classes["per_class"]
    )
    header = ("class", *(str(row["label"]) for row in classes["per_class"]))
    confusion = (
        (f"**{label}**", *row) for label, row in zip(header[1:], classes["confusion"], strict=True)
    )
    return "\n\n".join(
        [
            f"Accuracy {classes['accuracy']:.4f}, 95 % interval {low:.4f} to {high:.4f} (Wilson).",
            _table(("class", "examples", "precision", "recall", "F1"), rows),
            "Confusion: rows are the classes, columns what they are taken for.",
            _table(header, confusion),
        ]
    )


def _data(data: Mapping[str, Any] | None) -> str:
    if data is None:
        return "The objective names no data set."
    return f"{data['name']} from {data['source']}, fingerprint `{data['fingerprint']}`"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _table(header: tuple[str, ...], rows: Any) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
