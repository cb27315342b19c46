"""Telling a user which name was meant."""

import difflib
from collections.abc import Iterable


def suggest(name: str, known: Iterable[str], kind: str) -> str:
    """End of an error sentence: the likely name, or the names there are.

    ``kind`` is what the names are called in the sentence ("settings", "plans").
    """
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), names, n=1)
    return f"did you mean {close[0]}?" if close else f"{kind} there are: {', '.join(names)}"


def unknown_names(given: Iterable[str], known: Iterable[str], kind: str = "settings") -> list[str]:
    """One sentence for each given name that is not known."""
    names = set(known)
    return [f"{name}: no such setting; {suggest(name, names, kind)}" for name in sorted(set(given) - names)]
