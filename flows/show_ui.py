"""Start the pages of Prefect and MLflow on this machine, until Ctrl-C: `python -m flows.show_ui`."""

from __future__ import annotations

import os
import subprocess
import sys

from flows.show_result import MLFLOW_UI, PREFECT_UI


def main() -> int:
    """Run both servers on the project's own state; when one ends or Ctrl-C comes, end the other too."""
    servers = [
        [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", PREFECT_UI[-4:]],
        [
            *(sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", MLFLOW_UI[-4:]),
            *("--backend-store-uri", os.environ["MLFLOW_TRACKING_URI"]),
        ],
    ]
    print(f"Prefect {PREFECT_UI}   MLflow {MLFLOW_UI}   (Ctrl-C stops both)", flush=True)
    running = [subprocess.Popen(command) for command in servers]
    try:
        os.wait()
    except KeyboardInterrupt:
        pass
    finally:
        for server in running:
            server.terminate()
        for server in running:
            server.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
