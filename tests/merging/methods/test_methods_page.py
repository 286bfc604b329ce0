"""docs/methods.md tells what the registry knows: every method, what it needs, every option and its default."""

import ast
import re
from pathlib import Path

import mergeline.merging  # noqa: F401
from mergeline.merging import registry
from mergeline.merging.registry import Method

PAGE = Path(__file__).resolve().parents[3] / "docs" / "methods.md"
EVIDENCE = {
    "fisher": "labelled batches (`fisher_diagonal`)",
    "gram": "calibration batches (`gram_matrices`)",
    "merged_gram": "calibration batches (`merged_gram_matrices`)",
}


def rows(heading: str) -> list[list[str]]:
    """Cells of the table with that first line."""
    lines = PAGE.read_text().splitlines()
    table = lines[lines.index(heading) + 2 :]
    table = table[: next(i for i, line in enumerate(table) if not line.startswith("|"))]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]


def needs(method: Method) -> str:
    least, most = method.models
    parts = [] if least == 1 else [f"{least} models" if most == least else f"{least} or more models"]
    parts += ["base"] if method.needs_base else []
    parts += [EVIDENCE[method.evidence]] if method.evidence else []
    parts += [f"statistics per {method.granularity}"] if method.statistics else []
    parts += ["whole tensors"] if method.whole_tensors else []
    return ", ".join(parts) or "–"


def test_every_method_is_there_with_its_source_and_what_it_needs() -> None:
    table = rows("| method | what it computes | source | needs |")
    assert {name.strip("`"): need for name, _, _, need in table} == {
        name: needs(registry.get(name)) for name in registry.names()
    }
    for name, formula, source, _ in table:
        assert formula and re.fullmatch(r"\[.+\]\(https://.+\)", source), name


def test_every_option_is_there_with_its_default_and_meaning() -> None:
    table = rows("| method | option | default | meaning |")
    found = [
        (name.strip("`"), option.strip("`"), ast.literal_eval(value.strip("`"))) for name, option, value, _ in table
    ]
    expected = [
        (name, option, schema.default)
        for name in registry.names()
        for option, schema in registry.get(name).options.items()
    ]
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    assert all(meaning for *_, meaning in table)


def test_every_source_named_on_the_page_is_named_in_the_methods_file() -> None:
    for name, _, source, _ in rows("| method | what it computes | source | needs |"):
        module = Path(registry.get(name.strip("`")).kernel.__code__.co_filename).read_text()
        paper = re.search(r"arxiv\.org/abs/([0-9.]+)\)", source)
        assert (paper[1] if paper else re.search(r"\b\d{4}\b", source)[0]) in module, name  # type: ignore[index]
