"""HTML for notebooks: how objects show themselves in a cell."""

from collections.abc import Iterable, Sequence
from html import escape


def html_table(head: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """Table with a header row; the text of every cell is escaped."""
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    header = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    return f"<table>{title}<thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"


class Swatch(str):
    """Colour ``#rrggbb`` that a table shows as a filled square."""

    __slots__ = ()


def _cell(value: object) -> str:
    if isinstance(value, Swatch):
        return f'<td><span style="display:inline-block;width:2em;background:{escape(value)}">&nbsp;</span></td>'
    align = "right" if isinstance(value, int | float) else "left"
    text = f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    return f'<td style="text-align:{align}">{escape(text)}</td>'
