"""The bibliography: one ``references.bib`` that code, docs and ``steepest cite`` read."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from importlib.resources import files

from steepest.core.errors import value_error

__all__ = ["Entry", "entries", "entry"]


@dataclass(frozen=True)
class Entry:
    """One publication, with its BibTeX as it stands in the file."""

    key: str
    text: str
    title: str
    authors: str
    venue: str
    year: str
    url: str

    @property
    def short(self) -> str:
        """The authors as a citation names them: ``Yao et al.``."""
        surnames = [name.split()[-1] for name in self.authors.split(", ")]
        return (
            surnames[0]
            if len(surnames) == 1
            else f"{surnames[0]} et al."
            if len(surnames) > 2
            else " and ".join(surnames)
        )


@functools.cache
def entries() -> dict[str, Entry]:
    """Read all entries of ``references.bib``."""
    text = files("steepest").joinpath("references.bib").read_text(encoding="utf-8")
    found = {}
    for block in re.split(r"\n(?=@)", text.strip()):
        head = re.match(r"@\w+\{([^,]+),", block)
        if head is None:
            raise ValueError(f"references.bib has a block that is no entry: {block[:60]!r}")
        fields = dict(re.findall(r"^\s*(\w+)\s*=\s*\{(.*)\},?$", block, flags=re.M))
        plain = {k: re.sub(r"[{}]", "", v) for k, v in fields.items()}
        found[head[1]] = Entry(
            key=head[1],
            text=block,
            title=plain["title"],
            authors=plain["author"].replace(" and ", ", "),
            venue=next(plain[k] for k in ("booktitle", "journal", "publisher", "institution") if k in plain),
            year=plain["year"],
            url=plain["url"],
        )
    return found


def entry(key: str) -> Entry:
    """Look an entry up.

    Examples
    --------
    >>> entry("yao2021adahessian").year
    '2021'
    """
    if key not in entries():
        raise value_error("key", "an entry of references.bib", key)
    return entries()[key]
