"""Text: what comes from a database, a file or an exception, as a terminal may show it.

A terminal obeys control characters. They can clear it, hide lines, or write to its clipboard.
"""

from __future__ import annotations

import logging


def visible(text: str, kept: str = "") -> str:
    """The text in one line, with escapes in place of control characters.

    Args:
        text: The text.
        kept: Control characters that stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in kept else char.encode("unicode_escape").decode()
        for char in text
    )


def make_visible(record: logging.LogRecord) -> bool:
    """A filter of `logging`: it lets every record through, without control characters."""
    kept = "\n\t" if record.name == "py.warnings" else "\t"  # a warning has a line of its source
    record.msg, record.args = visible(record.getMessage(), kept), None
    return True


# All our messages go through this logger, in a notebook too.
logging.getLogger("studyhall").addFilter(make_visible)
