"""Texts as markup: everything is escaped here or by the templates."""

from __future__ import annotations

import html
import io
import json
import keyword
import re
import tokenize

from markupsafe import Markup

__all__ = ["highlight", "prose", "script_json"]


def prose(paragraph: str) -> Markup:
    """Escape a paragraph; what stands between backquotes is code, what stands between stars is stressed.

    Examples
    --------
    >>> prose("use ``a < b``, *never* 2*a*b")
    Markup('use <code>a &lt; b</code>, <em>never</em> 2*a*b')
    """
    marks = r"(`{1,2})([^`]+)\1|(?<![\w*])\*(\w[^*]*)\*(?![\w*])"
    return Markup(
        re.sub(
            marks,
            lambda m: f"<code>{m[2]}</code>" if m[1] else f"<em>{m[3]}</em>",
            html.escape(paragraph, quote=False),
        )
    )


def highlight(code: str) -> Markup:
    """Mark keywords, numbers, texts and comments of Python code for the style sheet.

    Examples
    --------
    >>> highlight("x = 1  # one")
    Markup('x = <span class="m">1</span>  <span class="c"># one</span>')
    """
    lines = code.strip("\n").splitlines(keepends=True)
    kinds = {tokenize.NUMBER: "m", tokenize.STRING: "g", tokenize.COMMENT: "c"}
    parts, row, column = [], 1, 0

    def upto(line: int, col: int) -> str:
        """Take what lies between the last token and this one as it stands."""
        if line == row:
            return lines[row - 1][column:col]
        return lines[row - 1][column:] + "".join(lines[row : line - 1]) + lines[line - 1][:col]

    try:
        for t in tokenize.generate_tokens(io.StringIO("".join(lines)).readline):
            kind = "k" if t.type == tokenize.NAME and keyword.iskeyword(t.string) else kinds.get(t.type)
            if kind:
                parts.append(html.escape(upto(*t.start), quote=False))
                parts.append(f'<span class="{kind}">{html.escape(t.string, quote=False)}</span>')
                row, column = t.end
    except (tokenize.TokenError, SyntaxError):
        return Markup(html.escape(code.strip("\n"), quote=False))
    rest = lines[row - 1][column:] + "".join(lines[row:]) if lines else ""
    return Markup("".join(parts) + html.escape(rest, quote=False))


def script_json(value: object) -> Markup:
    """Write JSON that may stand inside a script element."""
    plain = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(plain.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
