"""Print the result that lies in a folder, and where to look at the run: `python -m flows.show_result [FOLDER]`."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mergeline.errors import InputError
from tasks._env import state_directory
from tasks.dashboard import MLFLOW_UI, PREFECT_UI, pages

if TYPE_CHECKING:
    from tasks.recording import Recorded


def links_file(folder: Path) -> Path:
    """Where the links of the result in a folder are remembered: by its lineage, because DVC may bring a result back."""
    key = hashlib.sha256((folder / "lineage.json").read_bytes()).hexdigest()
    return state_directory() / ".links" / f"{key}.json"


def save_links(folder: Path, recorded: Recorded) -> None:
    """Remember where the run that made a result can be looked at."""
    path = links_file(folder)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(pages(recorded), indent=1) + "\n")


def show(folder: Path) -> None:
    """Print the table and three links. Raises InputError where the folder holds no result."""
    from rich.console import Console

    from mergeline.report.result import read_comparison
    from mergeline.report.table import header, terminal_table

    comparison = read_comparison(folder / "comparison.json")
    # in a file or a pipe nothing is known of the width: then the table is as wide as it needs to be
    columns = len(header(comparison)) if comparison.rows else 0
    console = Console(width=None if sys.stdout.isatty() else 60 + 12 * columns, highlight=False)
    if comparison.rows:
        console.print(terminal_table(comparison))
    else:
        console.print(f"{comparison.plan}: merged into {folder}; no tasks, so nothing was measured", soft_wrap=True)
    links = json.loads(links_file(folder).read_text()) if links_file(folder).is_file() else {}
    report = next((folder / name for name in ("report.html", "report.md") if (folder / name).is_file()), folder)
    for name, link in ({"report": str(report)} | links).items():
        console.print(f"  {name:<8} {link}", soft_wrap=True)
    if any(PREFECT_UI in link or MLFLOW_UI in link for link in links.values()):
        console.print("  (`make ui` starts the pages of MLflow and Prefect)")


def main() -> int:
    """Exit status 0, or 2 where there is no result."""
    try:
        show(Path(sys.argv[1] if len(sys.argv) > 1 else "data/merged"))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
