"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """Return the lines of a table.

    Args:
        header: the title of each column.
        rows: the cells of each row.
        left: the number of left-aligned columns; the other columns, which hold numbers, are right-aligned.
    """
    alignment = ["---"] * left + ["---:"] * (len(header) - left)
    return [f"| {' | '.join(cells)} |" for cells in (header, alignment, *rows)]
