"""Table 1 of the paper."""

import argparse
import sys

from experiments.table1_counts import NETWORKS, markdown, show

__all__ = ["NETWORKS", "markdown"]


def main() -> int:
    """Count."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    show()
    return 0


if __name__ == "__main__":
    sys.exit(main())
