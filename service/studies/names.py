"""Names of studies: which ones a command can take and a table can show."""

from __future__ import annotations

from service.errors import ConfigurationError


def check_name(name: str) -> None:
    """Refuse names that a command cannot take or a table cannot show.

    Raises:
        ConfigurationError: It is empty, too long, begins with a dash or has control characters.
    """
    if not name.strip() or len(name) > 200 or name.startswith("-") or not name.isprintable():
        raise ConfigurationError(
            f"a study cannot be called {name[:60]!r}: a name has 1 to 200 printable characters, "
            f"not only blanks, and does not begin with a dash"
        )


def is_stored(name: str) -> bool:
    """Whether PostgreSQL can hold the text at all, so that it may be asked for."""
    return "\0" not in name and name.encode(errors="ignore").decode() == name
