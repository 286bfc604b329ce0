"""What compose.yaml starts, to start the very same commands here, on the loopback."""

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]


def commands(service: str) -> list[list[str]]:
    """The commands of a service, one after the other, with this Python."""
    command = SERVICES[service]["command"]
    several = [part.split() for part in command[2].split("&&")] if command[:2] == ["sh", "-c"] else [command]
    return [[sys.executable, *one[1:]] if one[0] == "python" else one for one in several]


def environment(service: str, values: Mapping[str, str], hosts: Mapping[str, str]) -> dict[str, str]:
    """The environment of a service: `values` in the place of ${NAME}, addresses here in the place of its hosts."""
    found = {}
    for name, text in SERVICES[service].get("environment", {}).items():
        text = re.sub(r"\$\{(\w+)(?::\?[^}]*|:-([^}]*))?\}", lambda m: values.get(m[1], m[2] or ""), str(text))
        for host, address in hosts.items():
            text = re.sub(rf"(?<=[/@]){re.escape(host)}\b", address, text)
        found[name] = text
    return found


def run(service: str, given: Mapping[str, str], cwd: Path = ROOT) -> None:
    """Run a service that ends by itself."""
    for command in commands(service):
        done = subprocess.run(command, cwd=cwd, env=clean() | dict(given), capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@contextmanager
def running(service: str, given: Mapping[str, str], log: Path, cwd: Path = ROOT):
    """A service that stays, in a session of its own, until the block ends; what it says goes to `log`."""
    (command,) = commands(service)
    with ExitStack() as stack:
        file = stack.enter_context(log.open("ab"))
        process = subprocess.Popen(
            command, cwd=cwd, env=clean() | dict(given), stdout=file, stderr=file, start_new_session=True
        )
        try:
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 15)
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the address answers; fails with what the process said where it ends before."""
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
            assert process.poll() is None, log.read_text()


def clean() -> dict[str, str]:
    """This environment without what the tests' own server, state and tools were told."""
    ours = re.compile(r"MERGELINE_|PREFECT_|MLFLOW_|HF_|AWS_|COV_|PYTEST_")
    return {name: value for name, value in os.environ.items() if not ours.match(name)} | {"PYTHONPATH": str(ROOT)}
