"""Where tables are printed."""

from rich.console import Console


def console() -> Console:
    """A console that never cuts a table short when its output goes to a file."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=160)
