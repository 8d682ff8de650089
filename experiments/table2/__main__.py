"""Table 2 of the paper: LinearConv and other methods with few parameters or FLOPs, counted, trained and timed.

    python -m experiments.table2                    # count, and print with the measured accuracies and speeds
    python -m experiments.table2 --speed            # time all networks as well, for about five minutes

Counts and speeds are written to results/table2.json; accuracies come from the sweeps in results/. The scripts
models/vgg_xcnn.py and models/squeezenet_xcnn.py train the rows; -t octave, basis, ghost and svd are the other methods.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.measuring import command_line
from experiments.results import NoResults, every_run, load
from experiments.table1 import counts as table1_counts
from experiments.table2 import accuracy, speed
from experiments.table2.counts import count_rows
from linearconv_variants import positive_float
from training.checkpoints import write_json
from training.errors import EXPECTED, report_failure
from training.report import ROOT, origin

RESULT = ROOT / "results" / "table2.json"


def markdown(record: dict, runs: Iterable[dict]) -> list[str]:
    """Return the lines of all three tables.

    Args:
        record: content of the result file.
        runs: runs from :func:`experiments.results.every_run`.
    """
    counts = table1_counts.markdown(record["rows"])
    return [*counts, "", *accuracy.markdown(runs), "", *speed.markdown(record.get("speed"))]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = command_line(__doc__)
    parser.prog = "python -m experiments.table2"
    add = parser.add_argument
    add("--speed", action="store_true", help="measure speed on --device too (default: keep the measured speeds)")
    add("--seconds", type=positive_float, default=45, help="for each network and task (default: 45)")
    add("--output", type=Path, default=RESULT, help="default: results/table2.json")
    options = parser.parse_args(argv)
    try:
        try:
            record = load(options.output.stem, options.output.parent)
        except NoResults:
            record = {}
        record |= {"origin": origin(), "image": table1_counts.IMAGE, "rows": count_rows()}
        if options.speed:
            record["speed"] = speed.measure(options.seconds, options.device)
        write_json(options.output, record)
        print("\n".join(markdown(record, every_run())))
    except EXPECTED as error:
        return report_failure(error, "table2")
    print(f"written: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
