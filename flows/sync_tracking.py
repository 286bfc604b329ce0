"""Deliver the records of runs that MLflow did not take when they were made: `python -m flows.sync_tracking`."""

from __future__ import annotations

import argparse
import logging
import os
import sys


def main() -> int:
    """Exit status 0 where nothing is left to deliver, 1 where MLflow could not be reached or refused some."""
    parser = argparse.ArgumentParser(prog="python -m flows.sync_tracking", description=__doc__)
    parser.parse_args()
    import tasks.logs  # noqa: F401  it masks secrets in what is logged
    from mergeline.redaction import redact
    from tasks.tracking import deliver_all

    logging.basicConfig(format="%(message)s")
    sent, left = deliver_all()
    where = redact(os.environ["MLFLOW_TRACKING_URI"])
    print(f"{len(sent)} delivered to {where}, {len(left)} left" if sent or left else "nothing to deliver")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
