"""Four text tasks from the index of Debian packages: what a package is, told from its one-line description.

Labels are the section and three facets of debtags (role, user interface toolkit, language of implementation). All tasks
share one set of classes, so that one file of prototypes and one label column serve them.
"""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from mergeline.errors import InputError
from mergeline.evaluation.near_duplicates import connected, near_duplicates

if TYPE_CHECKING:
    import datasets

TASKS = {
    "section": {
        "admin": "system administration",
        "database": "databases",
        "editors": "editing text",
        "electronics": "electronics and circuit design",
        "fonts": "fonts and typefaces",
        "games": "games",
        "graphics": "images and graphics",
        "mail": "electronic mail",
        "math": "mathematics",
        "net": "networking",
        "science": "science",
        "sound": "sound and music",
        "text": "processing text and documents",
        "video": "video",
        "web": "the web",
    },
    "role": {
        "app-data": "data of an application",
        "devel-lib": "development files of a library",
        "documentation": "documentation",
        "metapackage": "a metapackage that depends on others",
        "plugin": "a plugin",
        "program": "a program",
        "shared-lib": "a shared library",
    },
    "uitoolkit": {
        "gtk": "GTK and GNOME",
        "ncurses": "ncurses in a text terminal",
        "qt": "Qt and KDE",
        "sdl": "SDL",
        "xlib": "plain X11",
    },
    "implemented-in": {
        "c": "C",
        "c++": "C++",
        "java": "Java",
        "lisp": "Lisp",
        "ocaml": "OCaml",
        "perl": "Perl",
        "python": "Python",
        "shell": "shell script",
    },
}
"""Task -> class, as the index calls it -> its name in the prompts of the label prototypes."""

TEMPLATES = {
    "section": ("software for {}", "{}"),
    "role": ("{}", "this package is {}"),
    "uitoolkit": ("a user interface with {}", "{}"),
    "implemented-in": ("written in {}", "a {} package"),
}

CLASS_NAMES = tuple(f"{task}::{name}" for task, classes in TASKS.items() for name in classes)

SHARES = {"test": 0.5, "train": 0.36, "validation": 0.1, "calibration": 0.04}
"""How the groups of sources are shared out: half measures, so that every task has 1500 test examples."""

SIZES = {"test": 1600, "train": 1500, "validation": 400, "calibration": 100}
"""At most so many examples per task."""

ALIKE = 0.7
"""Descriptions that share so many of their words are near-duplicates."""


@dataclass(frozen=True)
class Package:
    """What the index says: labels has the class of each task that the package has exactly one of."""

    name: str
    source: str
    description: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Example:
    """A package as an example of one task."""

    package: Package
    task: str

    @property
    def label(self) -> str:
        """One of CLASS_NAMES."""
        return f"{self.task}::{self.package.labels[self.task]}"


def prompts() -> list[list[str]]:
    """The prompts of each class, in the order of CLASS_NAMES."""
    return [
        [template.format(name) for template in TEMPLATES[task]]
        for task, classes in TASKS.items()
        for name in classes.values()
    ]


def dump_index() -> str:
    """The index of all packages that apt knows on this machine. InputError where there is none."""
    if shutil.which("apt-cache") is None:
        raise InputError("apt-cache is not installed; run this on Debian, or name a saved `apt-cache dumpavail`")
    text = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    if "\nTag: " not in text:
        raise InputError("`apt-cache dumpavail` lists no packages with tags; run apt-get update first")
    return text


def saved_index(file: Path) -> str:
    """An index that `apt-cache dumpavail` has written into a file. InputError where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error}); name what `apt-cache dumpavail` printed") from error


def read_index(text: str) -> list[Package]:
    """The packages of Debian's main archive that belong to a task, by source and name; of each name the first."""
    found: dict[str, Package] = {}
    for paragraph in text.split("\n\n"):
        fields = dict(_fields(paragraph))
        name, section = fields.get("Package", ""), fields.get("Section", "/")
        labels = _labels(section, fields.get("Tag", "")) if "/" not in section else {}
        if labels and fields.get("Description"):
            source = fields.get("Source", name).partition(" ")[0]
            found.setdefault(name, Package(name, source, fields["Description"], labels))
    return sorted(found.values(), key=lambda package: (package.source, package.name))


def _fields(paragraph: str) -> Iterator[tuple[str, str]]:
    """The fields of a paragraph of control data (deb822); of a description only the first line, which is short."""
    for field in paragraph.replace("\n ", " ").splitlines():
        name, _, value = field.partition(":")
        yield name, value.strip()


def _labels(section: str, tags: str) -> dict[str, str]:
    """The class in each task; none where several tags of a facet apply, or one that is no class."""
    values: dict[str, set[str]] = defaultdict(set)
    values["section"].add(section)
    for tag in tags.split(","):
        facet, _, value = tag.strip().partition("::")
        values[facet].add(value)
    chosen = {task: next(iter(values[task])) for task in TASKS if len(values[task]) == 1}
    return {task: name for task, name in chosen.items() if name in TASKS[task]}


def choose_examples(packages: Sequence[Package]) -> dict[str, list[Example]]:
    """Split -> its examples. What is nearly the same never lies in two splits.

    Sources whose packages have near-duplicate descriptions, over any number of steps, form a group, and a group lies in
    one split, by the hash of its name. Of each source, and of near-duplicates, a class has one example. Each split has
    as many of every class as there are, as far as its size allows.
    """
    pairs = list(near_duplicates([package.description for package in packages], ALIKE))
    sources = [package.source for package in packages]
    group = connected(sources, [(sources[i], sources[j]) for i, j in pairs])
    alike: dict[int, set[int]] = defaultdict(set)
    for i, j in pairs:
        alike[i].add(j)
        alike[j].add(i)
    chosen: dict[str, list[Example]] = {}
    for task in TASKS:
        kept = _one_of_each(packages, task, alike)
        for split, size in SIZES.items():
            members = [example for example in kept if _split_of(group[example.package.source]) == split]
            chosen.setdefault(split, []).extend(_evenly(members, size))
    return chosen


def _one_of_each(packages: Sequence[Package], task: str, alike: Mapping[int, set[int]]) -> list[Example]:
    """Examples of a task, of every class one per source and one of what is alike."""
    places: dict[str, set[int]] = defaultdict(set)
    sources: set[tuple[str, str]] = set()
    examples = []
    for i, package in enumerate(packages):
        label = package.labels.get(task)
        if label is None or (package.source, label) in sources or alike[i] & places[label]:
            continue
        places[label].add(i)
        sources.add((package.source, label))
        examples.append(Example(package, task))
    return examples


def _evenly(examples: Sequence[Example], size: int) -> list[Example]:
    """At most `size` examples, by a limit for all classes; which ones is up to their hashes, and so is the order."""
    shuffled = sorted(examples, key=lambda example: sha256(example.package.name.encode()).digest())
    counts = Counter(example.label for example in examples)
    limit = max(counts.values(), default=0)
    while sum(min(count, limit) for count in counts.values()) > size:
        limit -= 1
    taken: Counter[str] = Counter()
    chosen = []
    for example in shuffled:
        taken[example.label] += 1
        if taken[example.label] <= limit:
            chosen.append(example)
    return chosen


def _split_of(group: str) -> str:
    """The split of a group of sources, by a number in [0, 1) that its name gives."""
    place = int.from_bytes(sha256(group.encode()).digest()[:8]) / 2**64
    for split, share in SHARES.items():
        place -= share
        if place < 0:
            return split
    return next(reversed(SHARES))


def as_dataset(examples: Sequence[Example]) -> datasets.Dataset:
    """Columns: text, label (one of CLASS_NAMES), task, package, source."""
    import datasets

    string = datasets.Value("string")
    label = datasets.ClassLabel(names=list(CLASS_NAMES))
    features = datasets.Features(text=string, label=label, task=string, package=string, source=string)
    rows = [
        {
            "text": example.package.description,
            "label": CLASS_NAMES.index(example.label),
            "task": example.task,
            "package": example.package.name,
            "source": example.package.source,
        }
        for example in examples
    ]
    return datasets.Dataset.from_list(rows, features=features)
