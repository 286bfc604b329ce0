"""Servers of the tests: PostgreSQL, MLflow on it, and a model that is served; each ends with its block."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager, suppress
from pathlib import Path


def find_postgres():
    """The folder of initdb and pg_ctl, or None."""
    found = [Path(path).resolve().parent for name in ("initdb",) if (path := shutil.which(name))]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in found if (folder / "pg_ctl").is_file()), None)


def _unprivileged():
    """A user to run PostgreSQL as, which refuses to be root; None where we are no root."""
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


@contextmanager
def postgres(binaries):
    """The address of an empty database on a server of its own.

    It names the driver: SQLAlchemy from 2.1 on takes psycopg 3 for `postgresql://`.
    """
    folder, user, port = Path(tempfile.mkdtemp(prefix="mergeline-postgres-")), _unprivileged(), free_port()
    if user:
        shutil.chown(folder, user)

    def run(program, *arguments):
        command = [str(binaries / program), "-D", str(folder / "data"), *arguments]
        done = subprocess.run(command, user=user, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        run("initdb", "--username=mergeline", "--auth=trust", "--no-sync")
        options = f"-k {folder} -p {port} -c listen_addresses=127.0.0.1 -c fsync=off"
        run("pg_ctl", "--wait", "--log", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql+psycopg2://mergeline@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "--wait", "--mode=immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def mlflow(*arguments, env=None):
    """The address of `mlflow ...`, a command that serves, once it says that it does."""
    port = free_port()
    beside_python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # uvicorn is looked for there
    env = (env or os.environ) | {"PATH": beside_python}
    command = [sys.executable, "-m", "mlflow", *arguments, "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, env=env
    )
    said, serves = [], threading.Event()

    def listen():
        for line in process.stdout:
            said.append(line)
            if all(any(sign in line for line in said) for sign in ("Application startup complete", "Uvicorn running")):
                serves.set()
        process.wait()
        serves.set()

    threading.Thread(target=listen, daemon=True).start()
    try:
        serves.wait()
        assert process.poll() is None, "".join(said)
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):  # it has ended by itself, and said why
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
