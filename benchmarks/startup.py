"""How long a script takes before it does anything, against the import of torch and numpy that none can do without.

    python -m benchmarks.startup                # a minute or two
    python -m benchmarks.startup --rounds 30

Fresh processes in turns, one of each command a round; what is reported are medians, and the median of the ratios to
the import within a round: of the processor's time (user and system, which other work on the machine disturbs little)
and of the time on the clock. Writes results/startup_cpu.json and prints its table.
"""

import argparse
import os
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from linearconv_variants import OneLineParser, positive_int
from training.checkpoints import write_json
from training.report import ROOT, origin

IMPORT = "python -c 'import torch, numpy'"
COMMANDS = (IMPORT, "python models/vgg_xcnn.py --help", "python models/vgg_xcnn.py --count-only")
CLOCKS = ("cpu_seconds", "seconds")
# As anyone has it who did not switch bytecode off: compiled once, by the first round, which does not count.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def time_process(command: str) -> dict[str, float]:
    """Run a command in the repository's root, `python` being this one; return its `cpu_seconds` and `seconds`.

    Raises:
        subprocess.CalledProcessError: where it fails.
    """
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, check=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"cpu_seconds": cpu_seconds, "seconds": seconds}


def measure(commands: Sequence[str], rounds: int) -> list[dict]:
    """Return a row per command: both medians, and both ratios to the first command, after a round that warms up."""
    turns = [{command: time_process(command) for command in commands} for _ in range(rounds + 1)][1:]
    rows = []
    for command in commands:
        row = {"command": command, "rounds": rounds}
        for clock in CLOCKS:
            row[clock] = statistics.median(turn[command][clock] for turn in turns)
            ratios = [turn[command][clock] / turn[commands[0]][clock] for turn in turns]
            row[f"{clock}_ratio"] = statistics.median(ratios)
        rows.append(row)
    return rows


def markdown(rows: Sequence[dict]) -> list[str]:
    """Return the table: a line per command, for each clock seconds and the ratio to the import."""
    lines = ["| python ... | processor time | time on the clock |", "| --- | ---: | ---: |"]
    for row in rows:
        cells = [f"{row[clock]:.2f} s ({row[f'{clock}_ratio']:.2f})" for clock in CLOCKS]
        lines.append(f"| `{row['command'].removeprefix('python ')}` | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Measure what the command line asks for."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive_int, default=11, help="processes of each command (default: 11)")
    options = parser.parse_args()
    rows = measure(COMMANDS, options.rounds)
    write_json(ROOT / "results" / "startup_cpu.json", {"origin": origin(), "rows": rows})
    print("\n".join(markdown(rows)))


if __name__ == "__main__":
    main()
