"""Command lines with their own options before `--` and training options after it."""

import shlex
from collections.abc import Sequence


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before the first `--`, and the arguments after it."""
    split = argv.index("--") if "--" in argv else len(argv)
    return list(argv[:split]), list(argv[split + 1 :])


def shown_command(words: Sequence[str], data_root: str) -> str:
    """Return a command line for result files, with DIR instead of this machine's data root."""
    hidden = []
    for word in words:
        option, equals, value = word.rpartition("=")
        hidden.append(option + equals + "DIR" if value == data_root else word)
    return shlex.join(hidden)
