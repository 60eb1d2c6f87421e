"""The parts of pages for people: nothing is fetched, nothing is executed, everything from files is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from mtop_batch.lines import without_secrets

_MAX_TEXT = 300
COLORS = ("#2f6db3", "#c8722c", "#3d8f5f", "#8a5fb0", "#b33f52", "#6b6f2a", "#2c8f9a", "#777777")
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#1c2430;background:#fff;margin:2em auto;max-width:64em;padding:0 1em}
h1{font-size:1.5em;margin:0}
h2{font-size:1.15em;margin:1.8em 0 .5em;border-bottom:1px solid #d8dde4}
h3{margin:1.2em 0 .3em;font-size:1em}
table{border-collapse:collapse;margin:.4em 0;max-width:100%}
td,th{padding:.2em .7em .2em 0;text-align:left;vertical-align:top;overflow-wrap:anywhere}
td:first-child{min-width:6em}
th{font-weight:600;color:#5a6675}
td.m{text-align:right;padding:.1em .4em;min-width:1.6em}
details{margin:1.2em 0;border-top:1px solid #d8dde4}
summary{font-size:1.15em;font-weight:600;padding:.5em 0;cursor:pointer;overflow-wrap:anywhere}
.wide{overflow-x:auto}
.whole{white-space:nowrap}
table.small{font-size:11px}
.small th.n{padding:.1em .2em;min-width:1.2em}
.small td.m{padding:.1em .2em;min-width:1.2em}
td.n,th.n{text-align:right;white-space:nowrap}
.closed,.failed{color:#a3222f}
.open,.done{color:#256f43}
.quiet{color:#5a6675}
.box{border-left:4px solid #a3222f;background:#fbf1f2;padding:.5em 1em;margin:1em 0}
svg{display:block}
"""


def html_page(title: str, parts: Iterable[str]) -> str:
    """A whole page of parts that are HTML already; empty ones are left out."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escaped(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def escaped(value: object, limit: int = _MAX_TEXT) -> str:
    """A value as text of the page: in one line, without secrets and characters that nobody sees, shortened, escaped."""
    line = " ".join(without_secrets(str(value)).split())
    line = line if len(line) <= limit else f"{line[:limit]} ..."
    seen = "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in line
    )
    return html.escape(seen)


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table of cells that are HTML already."""

    def row(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=n' if index in numbers else ''}>{cell}</{tag}>" for index, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    return f"<table><tr>{row(head, 'th')}</tr>{body}</table>"


def svg_bar(share: float, width: int = 200) -> str:
    """A horizontal bar, of which 1 fills the width."""
    filled = max(0.0, min(1.0, share)) * width
    return f'<svg width="{width}" height="8"><rect width="{filled:.1f}" height="8" fill="{COLORS[0]}"/></svg>'
