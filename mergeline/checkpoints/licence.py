"""The licence of a checkpoint, as its own files name it; nothing is guessed where they do not."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import yaml

from mergeline.checkpoints.hub import parse_hub
from mergeline.checkpoints.sources import TransientError, fetch
from mergeline.errors import InputError

UNKNOWN = "unknown"
CARD = "README.md"
TEXTS = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")

_LARGEST = 1 << 20  # bytes of a text that is read
_KNOWN = {  # identifier on the hub -> what the text of the licence begins with
    "apache-2.0": r"apache license\W+version 2\.0",
    "mit": r"(the )?mit license|permission is hereby granted, free of charge, to any person obtaining a copy",
    "gpl-3.0": r"gnu general public license\W+version 3",
    "agpl-3.0": r"gnu affero general public license\W+version 3",
    "lgpl-3.0": r"gnu lesser general public license\W+version 3",
    "mpl-2.0": r"mozilla public license,? version 2\.0",
    "cc0-1.0": r"(creative commons (legal code)?\W*)?cc0 1\.0",
    "bsd-3-clause": r"bsd 3-clause",
    "bsd-2-clause": r"bsd 2-clause",
    "unlicense": r"this is free and unencumbered software",
}


def licence_of(uri: str) -> str:
    """The licence of a checkpoint: the hub's identifier, a name, or "unknown".

    Read are the front matter of README.md, config.json and LICENSE, in this order: of a local folder; of a local file
    the first two beside it; of a repository of the hub all three. Other places tell nothing.
    """
    if uri.startswith("hf://"):
        return licence_in(_hub_texts(uri))
    path = Path(uri.removeprefix("file://"))
    names = (CARD, "config.json", *TEXTS) if path.is_dir() else (CARD, "config.json")
    return licence_in(_local_texts(path if path.is_dir() else path.parent, names))


def licence_in(texts: Mapping[str, str]) -> str:
    """The licence that files name, by their texts: "apache-2.0", or "other (llama3)", or "unknown"."""
    front = _front_matter(texts.get(CARD, ""))
    config = _mapping(texts.get("config.json", ""))
    for fields in (front, config):
        if named := fields.get("license"):
            named = named[0] if isinstance(named, list) else named
            own = fields.get("license_name")
            return f"{_word(named)} ({_word(own)})" if own and str(named).lower() == "other" else _word(named)
    for name in TEXTS:
        head = " ".join(texts.get(name, "")[:2000].lower().split())
        for identifier, beginning in _KNOWN.items():
            if re.search(beginning, head):
                return identifier
        if head:
            return f"other ({_word(texts[name].strip().splitlines()[0])})"
    return UNKNOWN


def _word(value: Any) -> str:
    return re.sub(r"[^\w.+ -]", "", str(value)).strip()[:80]


def _front_matter(text: str) -> dict[str, Any]:
    found = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    try:
        fields = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _mapping(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _local_texts(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    files = {name: folder / name for name in names}
    return {
        name: path.read_text(encoding="utf-8", errors="replace")
        for name, path in files.items()
        if path.is_file() and path.stat().st_size <= _LARGEST
    }


def _hub_texts(uri: str) -> dict[str, str]:
    """The texts of a repository; those that it has not, or that do not come now, are left out."""
    with TemporaryDirectory() as folder:
        try:
            repository, revision, _ = parse_hub(uri.rstrip("/") + "/-")
            at = f"hf://{repository}@{quote(revision, safe='')}"
        except InputError:
            return {}
        for name in (CARD, "config.json", TEXTS[0]):
            try:
                fetch(f"{at}/{name}", Path(folder) / name, max_bytes=_LARGEST)
            except TransientError:
                break
            except InputError:
                continue
            if licence_in(found := _local_texts(Path(folder), (CARD, "config.json", *TEXTS))) != UNKNOWN:
                return found
    return {}
