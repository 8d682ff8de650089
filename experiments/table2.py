"""Table 2 of the paper: LinearConv beside other methods with few parameters or FLOPs, counted, trained and timed.

    python -m experiments.table2                    # count, and print with the accuracies and speeds that are there
    python -m experiments.table2 --speed            # time all networks as well, for about five minutes

Counts and speeds are written to results/table2.json; accuracies are those of the sweeps in results/. The rows are
trained by models/vgg_xcnn.py and models/squeezenet_xcnn.py, -t octave, basis, ghost and svd being the other methods.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.measuring import command_line
from experiments import table1_counts, table2_accuracy, table2_speed
from experiments.reading import NoResults, every_run, load
from experiments.table2_counts import IMAGE, count_rows
from linearconv_variants import positive_float
from training.checkpoints import write_json
from training.errors import EXPECTED, report_failure
from training.report import ROOT, origin

RESULT = ROOT / "results" / "table2.json"


def markdown(record: dict, runs: Iterable[dict]) -> list[str]:
    """Return the lines of all three tables.

    Args:
        record: of the result file.
        runs: of :func:`experiments.reading.every_run`.
    """
    counts = table1_counts.markdown(record["rows"])
    return [*counts, "", *table2_accuracy.markdown(runs), "", *table2_speed.markdown(record.get("speed"))]


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code."""
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--speed", action="store_true", help="measure speed on --device too; without it what was measured is kept")
    add("--seconds", type=positive_float, default=45, help="a network and task is timed for (default: 45)")
    add("--output", type=Path, default=RESULT, help="default: results/table2.json")
    options = parser.parse_args(argv)
    try:
        try:
            record = load(options.output.stem, options.output.parent)
        except NoResults:
            record = {}
        record |= {"origin": origin(), "image": IMAGE, "rows": count_rows()}
        if options.speed:
            record["speed"] = table2_speed.measure(options.seconds, options.device)
        write_json(options.output, record)
        print("\n".join(markdown(record, every_run())))
    except EXPECTED as error:
        return report_failure(error, "table2")
    print(f"written: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
