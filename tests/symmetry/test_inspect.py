"""The command that shows a symmetry says what is wrong in one sentence."""

import subprocess
import sys

LOUD = """
import logging
import tasks
from flows.command_line import quiet_prefect
quiet_prefect()
for name in ("prefect", "prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(name).error("a traceback")
"""


def test_prefect_does_not_write_around_the_sentence():
    done = subprocess.run([sys.executable, "-c", LOUD], capture_output=True, text=True, check=True)
    assert "traceback" not in done.stdout + done.stderr
