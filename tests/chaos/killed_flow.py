"""A process with everything imported, which forks a child for every run of the main job; the child may kill itself.

A line of JSON on stdin asks for runs at the same time, one object each: {state, mlflow, overrides, log}, and what may
happen to it: kill: [stage, number], the event before which it dies; after: seconds until it dies; fresh: --fresh;
changed: modules whose sources count as changed; settings: of Prefect; victim: a process (with its group) that dies in
place of the run. A line on stdout answers with their exit codes. A child writes into its
log what it is about to do: the stage, the event, the file or key or statement.
"""

import json
import os
import re
import signal
import sys
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import tasks  # noqa: F401  its settings come first
from flows.command_line import quiet_prefect
from flows.merge_and_evaluate import merge_and_evaluate
from mergeline.plan_file import load_plan
from tasks import code_version
from tasks.policy import fresh

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.utime"}
NOISE = re.compile(r"/\.store/(used/|tmp$|$)|\.lock$")
OWN = "mergeline.chaos."  # events of this file: a lock is held or free, a stage computes, MLflow is told something
IMPORTED = [
    *("matplotlib.pyplot", "mlflow.store.tracking.sqlalchemy_store", "scipy.optimize", "torch.fx"),
    *("mergeline.alignment.solve", "mergeline.calibration.normalization", "mergeline.evaluation.datasets"),
    *("mergeline.evaluation.metrics", "mergeline.merging.engine", "mergeline.report.chart"),
    *("mergeline.similarity.activation", "mergeline.symmetry.derive"),
]
_own = threading.local()


class Watch:
    """An audit hook that counts what a run does to files and databases, by stage, and kills it when its time comes."""

    def __init__(self, folders: list[str], log: Path, kill: list | None, victim: int | None) -> None:
        self._folders, self._kill, self._victim = tuple(folders), tuple(kill or ()), victim
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._counts: dict[str, int] = {}
        self._mutex = threading.Lock()

    def __call__(self, event: str, arguments: tuple) -> None:
        about = self._about(event, arguments)
        if about is None or getattr(_own, "busy", False):
            return
        _own.busy = True
        try:
            stage = _stage()
            with self._mutex:
                number = self._counts[stage] = self._counts.get(stage, 0) + 1
                if (stage, number) == self._kill:
                    os.killpg(self._victim or os.getpid(), signal.SIGKILL)
                os.write(self._log, f"{stage}\t{event.removeprefix(OWN)}\t{about}\n".encode())
        finally:
            _own.busy = False

    def _about(self, event: str, arguments: tuple) -> str | None:
        """The file, key or statement of an event that counts."""
        if event.startswith(OWN):
            return str(arguments[0])
        if event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES):
            path = os.fspath(arguments[0]) if isinstance(arguments[0], str | os.PathLike) else ""
            counts = str(path).startswith(self._folders) and not NOISE.search(str(path))
            return str(path) if counts else None
        return None


def _stage() -> str:
    from prefect.context import TaskRunContext

    context = TaskRunContext.get()
    return context.task.name if context is not None else "flow"


def tell_of_locks_and_stages() -> None:
    """Events for what Python's own do not show."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    from tasks import policy
    from tasks.locks import FlockLockManager

    acquire, release, timed = FlockLockManager.acquire_lock, FlockLockManager.release_lock, policy.measured

    def acquire_lock(self, key, *args, **kwargs):
        taken = acquire(self, key, *args, **kwargs)
        _own.key = key
        sys.audit(f"{OWN}held", key)
        return taken

    def release_lock(self, key, *args, **kwargs):
        release(self, key, *args, **kwargs)
        sys.audit(f"{OWN}free", key)

    def computing(name):
        sys.audit(f"{OWN}computes", _own.key)
        return timed(name)

    FlockLockManager.acquire_lock, FlockLockManager.release_lock = acquire_lock, release_lock  # type: ignore[method-assign]
    policy.measured = computing  # type: ignore[assignment]
    event.listen(Engine, "before_cursor_execute", lambda *about: sys.audit(f"{OWN}sql", about[2].split("\n")[0]))
    event.listen(Engine, "commit", lambda connection: sys.audit(f"{OWN}sql", "commit"))


def import_all() -> None:
    """What the stages import, so that no child pays for it."""
    for name in IMPORTED:
        import_module(name)
    import sqlalchemy.orm

    sqlalchemy.orm.configure_mappers()


def run(request: dict) -> None:
    """In a child: the flow, watched."""
    state, overrides = request["state"], request["overrides"]
    os.environ |= {"MERGELINE_STATE": state, "MLFLOW_TRACKING_URI": request["mlflow"]}
    plan = load_plan("params.yaml", overrides)
    tell_of_locks_and_stages()
    sys.addaudithook(
        Watch([state, str(plan.output.resolve())], Path(request["log"]), request.get("kill"), request.get("victim"))
    )
    if request.get("after"):
        threading.Thread(target=_die_after, args=[request["after"]], daemon=True).start()
    change(request.get("changed", []))
    quiet_prefect()
    with _settings(request.get("settings", {})), fresh() if request.get("fresh") else nullcontext():
        merge_and_evaluate(plan)


def _settings(values: dict) -> AbstractContextManager[object]:
    from prefect import settings

    return settings.temporary_settings({getattr(settings, name): value for name, value in values.items()})


def change(modules: list[str]) -> None:
    """The sources of these modules have another digest than their files."""
    read = code_version._read

    def changed(path, module):
        source = read(path, module)
        return replace(source, digest="changed") if module in modules else source

    code_version._read = changed  # type: ignore[assignment]


def _die_after(seconds: float) -> None:
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def fork(request: dict) -> int:
    """The process id of a child that runs the flow: it ends with 0, with 1 after an error, or by a signal."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        os.dup2(os.open(request["log"] + ".out", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        run(request)
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)


def main() -> None:
    """Answer until stdin ends."""
    import_all()
    assert threading.active_count() == 1, "a process with threads cannot be forked safely"
    print("ready", flush=True)
    for line in sys.stdin:
        children = [fork(request) for request in json.loads(line)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    main()
