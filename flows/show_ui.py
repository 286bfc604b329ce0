"""Start the pages of Prefect and MLflow on this machine, until Ctrl-C: `python -m flows.show_ui`."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys

from tasks.dashboard import MLFLOW_UI, PREFECT_UI


def main() -> int:
    """Run both servers on the project's own state; when one ends or Ctrl-C comes, end the other too."""
    parser = argparse.ArgumentParser(prog="python -m flows.show_ui", description=__doc__)
    parser.add_argument("--prefect-port", default=PREFECT_UI.rpartition(":")[2], help="default: %(default)s")
    parser.add_argument("--mlflow-port", default=MLFLOW_UI.rpartition(":")[2], help="default: %(default)s")
    options = parser.parse_args()
    host = ["--host", "127.0.0.1", "--port"]
    commands = [
        ["flows.start_server", *host, options.prefect_port],
        ["mlflow", "ui", *host, options.mlflow_port, "--backend-store-uri", os.environ["MLFLOW_TRACKING_URI"]],
    ]
    print(
        f"Prefect http://127.0.0.1:{options.prefect_port}   MLflow http://127.0.0.1:{options.mlflow_port}   "
        "(Ctrl-C stops both)",
        flush=True,
    )
    # sessions of their own, so that the workers of a server end with it
    servers = [subprocess.Popen([sys.executable, "-m", *command], start_new_session=True) for command in commands]
    for stop in (signal.SIGINT, signal.SIGTERM):  # also where a shell started this in the background
        signal.signal(stop, signal.default_int_handler)
    try:
        os.wait()
        print("one of the servers ended; is its port taken?", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        for server in servers:
            os.killpg(server.pid, signal.SIGTERM)
        for server in servers:
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
