"""
Compare finished runs on the same test patches with the first of them:

    python recipes/compare.py outputs/first outputs/second outputs/third
    python recipes/compare.py outputs/first outputs/second --score auroc --out comparison

Prints a table of scores and paired differences, whose intervals and p are corrected for their number; `--out` writes
it as comparison.md and comparison.csv. A study's folder stands for its ensemble.
"""

import argparse

from histolab_sft.errors import plain_errors


def main(args=None):
    from histolab_sft.study.compare import SCORES, compare_runs, format_rows, write_rows

    parser = argparse.ArgumentParser(
        prog="compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output_dir of a scored run or of a study")
    parser.add_argument("--score", choices=SCORES, default=SCORES[0], help="which score (%(default)s)")
    parser.add_argument("--out", metavar="PATH", help="also write PATH.md and PATH.csv")
    options = parser.parse_args(args)
    rows = compare_runs(options.runs, options.score)
    print(format_rows(rows, options.score))
    if options.out:
        write_rows(rows, options.score, options.out)


if __name__ == "__main__":
    with plain_errors():
        main()
