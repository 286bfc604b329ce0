"""Settings of every tool, made before any of them is imported.

All state lies under one folder, nothing phones home, and the arithmetic does not depend on the machine. Prefect and
torch read their settings once, when they are imported: `tasks` and `flows` therefore import this module first.
Everything but the number of threads is a default that the environment may override.
"""

import os
import platform
import sys
from pathlib import Path


def project_root(start: Path | None = None) -> Path:
    """MERGELINE_ROOT, else the nearest project from `start` (default: here) upwards, else the checkout.

    A project is a folder that holds params.yaml and flows/. Where there is none at all: `start` itself.
    """
    if given := os.environ.get("MERGELINE_ROOT"):
        return Path(given).resolve()
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents, Path(__file__).resolve().parent.parent):
        if (folder / "params.yaml").is_file() and (folder / "flows").is_dir():
            return folder
    return start


def default_state(root: Path) -> Path:
    """The folder of a project's state: its root. A copy that `dvc exp run --temp` made shares that of its original."""
    for parent in root.parents:
        if parent.name == "exps" and parent.parts[-3:-1] == (".dvc", "tmp"):
            return parent.parents[2]
    return root


def state_directory() -> Path:
    """MERGELINE_STATE: the folder that holds .store, .prefect, .mlflow and .hf (absolute)."""
    return Path(os.environ["MERGELINE_STATE"])


def tool_settings(state: Path) -> dict[str, str]:
    """The defaults of Prefect, MLflow, DVC, Hugging Face and Ray, as environment variables."""
    settings = {
        "PREFECT_HOME": str(state / ".prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",  # the usual 20 is too short for a busy machine
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",  # a temporary server that is stopped in mid-write prints tracebacks
        "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",  # its five seconds are too short for the same reason
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",  # a stage may be called in a notebook, without a flow
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "DO_NOT_TRACK": "true",  # 'true', not '1': the one value that both Prefect and MLflow understand
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{state / '.mlflow' / 'mlflow.db'}",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # a server that is down costs seconds, not minutes
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "DVC_NO_ANALYTICS": "1",
        "HF_HOME": str(state / ".hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    if os.environ.get("MERGELINE_FRESH", "").lower() in {"1", "true", "yes"}:
        settings["PREFECT_TASKS_REFRESH_CACHE"] = "true"
    return settings


def arithmetic_settings() -> dict[str, str]:
    """One instruction set for torch, oneDNN, MKL and OpenBLAS, so that x86 machines agree to the last bit.

    Empty where it would be in vain or unsafe: another architecture, a processor without AVX2 (the libraries do not
    check), or torch already imported.
    """
    if platform.machine().lower() not in {"x86_64", "amd64"} or not _has_avx2() or "torch" in sys.modules:
        return {}
    return {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_CBWR": "COMPATIBLE",  # the one branch of MKL that is the same on Intel and on others
        "OPENBLAS_CORETYPE": "Haswell",
    }


def _has_avx2() -> bool:
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return "avx2" in next((line for line in lines if line.startswith("flags")), "").split()
    except OSError:
        return False


def use_one_thread() -> None:
    """Let torch compute on one thread, because sums depend on how many share them. Stages run side by side instead.

    Acts on a torch that is already imported; one that is imported later reads OMP_NUM_THREADS, set below.
    """
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):  # another thread may be half way through the import
        torch.set_num_threads(1)


def configure() -> None:
    """Write the settings into the environment. Runs once, when this module is imported."""
    state = Path(os.environ.get("MERGELINE_STATE") or default_state(project_root())).resolve()
    os.environ["MERGELINE_STATE"] = str(state)
    state.mkdir(parents=True, exist_ok=True)  # Prefect's server does not start where it is missing
    for name, value in (tool_settings(state) | arithmetic_settings()).items():
        os.environ.setdefault(name, value)
    for library in ("OMP", "MKL", "OPENBLAS"):  # not a default: clusters set these for everybody
        os.environ[f"{library}_NUM_THREADS"] = "1"


configure()
