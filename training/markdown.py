"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """Return the lines of a table.

    Args:
        header: the title of each column.
        rows: the cells of each row.
        left: the number of columns that are aligned left; the others are aligned right, as numbers are.
    """
    alignment = ["---"] * left + ["---:"] * (len(header) - left)
    return [f"| {' | '.join(cells)} |" for cells in (header, alignment, *rows)]
