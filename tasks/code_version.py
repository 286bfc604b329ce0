"""The version of a stage's code: a digest of every project module that the stage's module can reach by imports.

The modules are found by reading the sources, imports inside functions included, so that nobody has to declare them and
nobody can forget one. Comments and layout do not count. A source is read once per process: a file that is edited while
a run goes on does not become the version of what the code loaded before computes.
"""

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from threading import Lock

# Other packages whose version may change a number.
NUMERIC_PACKAGES = ("torch", "numpy", "scipy", "safetensors")
# These may, too, where the project imports them: they read pictures, measure, draw.
_COMPUTING = {"PIL", "matplotlib", "torchmetrics"}
_PACKAGES = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}  # as imported

_PROJECT = {"mergeline", "tasks"}
# These decide where bytes lie and whether a stage runs, never what it computes: mending them throws no result away.
_INFRASTRUCTURE = {
    "tasks",
    "tasks._env",
    "tasks.code_version",
    "tasks.locks",
    "tasks.logs",
    "tasks.measuring",
    "tasks.outbox",
    "tasks.policy",
    "tasks.run_record",
    "tasks.secrets",
    "tasks.store",
    "tasks.tracking",
    "mergeline.redaction",
    "tasks.usage",
}
# Imports its public names on first use, which hides from a reader of the source what is used.
_LAZY = {"mergeline"}


_parsing = Lock()  # CPython 3.11 cannot parse in several threads at once: "AST constructor recursion depth mismatch"


@cache
def code_version(module: str) -> str:
    """Digest of `module`, the project modules it reaches, and the versions of the packages that compute.

    The project is mergeline, tasks, and the package that `module` itself lies in (a user's own model code), with what
    lies beside that. Of other packages a user's code may import any, and all that it imports count.
    Raises ValueError for a module without a source file, and where one imports a name from the lazy package.
    """
    packages = sorted({*NUMERIC_PACKAGES, *_packages(module)})
    lines = _source_lines([module]) + [f"{package} {installed(package)}" for package in packages]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def source_digest(modules: Iterable[str]) -> str:
    """Digest of the sources alone of several modules and what they reach: the same whatever is installed."""
    return hashlib.sha256("\n".join(_source_lines(modules)).encode()).hexdigest()


def project_packages(module: str) -> set[str]:
    """The top-level packages and modules that running `module` may load and a project has: its own, what lies beside
    it, and ours where it uses it."""
    with _parsing:
        return {name.partition(".")[0] for name in _reachable(module)}


def imported_packages(module: str) -> set[str]:
    """The distributions that a user's `module`, and what of its project it loads, import from elsewhere."""
    return {package for package in _packages(module) if installed(package) != "absent"}


def _source_lines(modules: Iterable[str]) -> list[str]:
    with _parsing:
        found = {name: path for module in modules for name, path in _reachable(module).items()}
        return [f"{name} {_read(path, name).digest}" for name, path in sorted(found.items())]


def _reachable(module: str) -> dict[str, Path]:
    """The project modules that importing and running `module` may load, with their files."""
    if _file(module) is None:
        raise ValueError(f"module {module!r} has no source file: a stage must live in a module that can be imported")
    found: dict[str, Path] = {}
    waiting = set(_loaded_by(module, module))
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if path is None or name in found or name in _INFRASTRUCTURE | _LAZY:
            continue
        found[name] = path
        for reference in _read(path, name).references:
            if _is_own(reference.partition(".")[0], module.partition(".")[0]):
                waiting.update(_loaded_by(reference, name))
    return found


def _is_own(package: str, origin: str) -> bool:
    """Whether a package is read as a part of the project: ours, the origin's, and what lies beside it in a project."""
    if package in _PROJECT or package == origin:
        return True
    home = None if package in sys.stdlib_module_names else _home(package)
    return home is not None and home == _home(origin)


@cache
def _home(package: str) -> Path | None:
    """The folder that a package or top-level module lies in; None where that is not a project's."""
    spec = _top_level(package)
    if spec is None:
        return None
    places = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.has_location and spec.origin else ())]
    home = Path(places[0]).resolve().parent if places else None
    shared = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib", "platstdlib")}
    return None if home is None or any(home.is_relative_to(folder) for folder in shared) else home


def _packages(module: str) -> set[str]:
    """The installed packages that the modules reached import, of those whose version may change a result."""
    origin, found = module.partition(".")[0], set()
    with _parsing:
        for name, path in _reachable(module).items():
            ours = name.partition(".")[0] in _PROJECT | {"flows"}
            tops = {reference.partition(".")[0] for reference in _read(path, name).references}
            for top in tops - sys.stdlib_module_names:
                if top in _COMPUTING or not (ours or _is_own(top, origin)):
                    found.add(_PACKAGES.get(top, top))
    return found


def _loaded_by(reference: str, importer: str) -> Iterator[str]:
    """The modules that an import of `reference` loads: the longest prefix that is a module, and its packages."""
    parts = reference.split(".")
    if parts[-1] == "*":  # everything in a package
        yield from _modules_in(".".join(parts[:-1]))
        return
    prefixes = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    modules = [prefix for prefix in prefixes if _file(prefix) is not None]
    if modules and modules[-1] in _LAZY:
        raise ValueError(
            f"{importer} imports {reference!r} from the lazy package {modules[-1]!r}, which hides what it depends on: "
            "import from the module that defines the name"
        )
    yield from modules


@dataclass(frozen=True)
class _Source:
    digest: str
    references: frozenset[str]  # dotted names: a module, perhaps followed by a name in it; "package.*": all of it


@cache
def _read(path: Path, module: str) -> _Source:
    tree = ast.parse(path.read_bytes(), filename=str(path))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return _Source(hashlib.sha256(ast.dump(tree).encode()).hexdigest(), frozenset(_references(tree, package)))


def _references(tree: ast.AST, package: str) -> Iterator[str]:
    for node in _executed(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            anchor = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*anchor, *([node.module] if node.module else [])])
            yield from (base if alias.name == "*" else f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _imports_by_name(node.func):
            match node.args:
                case [ast.Constant(value=str(name)), *_] if not name.startswith("."):
                    yield name
                case _:  # known only when it runs: then it may be anything beside it
                    yield f"{package}.*"


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below, less what stands under `if TYPE_CHECKING`: it is never run."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            children: Iterator[ast.AST] = iter(child.orelse)
        else:
            children = iter([child])
        for kept in children:
            yield kept
            yield from _executed(kept)


def _imports_by_name(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in {"import_module", "__import__", "iter_modules", "walk_packages"}


@cache
def _file(module: str) -> Path | None:
    """The source file of a module, found without importing it or its packages."""
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded and loaded.endswith(".py"):
        return Path(loaded)
    top, *rest = module.split(".")
    spec = _top_level(top)
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for location in spec.submodule_search_locations or []:
        path = Path(location, *rest)
        for candidate in (path / "__init__.py", path.with_name(f"{path.name}.py")):
            if candidate.is_file():
                return candidate
    return None


@cache
def _top_level(name: str) -> ModuleSpec | None:
    try:
        return find_spec(name)
    except ValueError:  # __main__ and the like
        return None


def _modules_in(package: str) -> Iterator[str]:
    origin = _file(package)
    if origin is None or origin.name != "__init__.py":
        return
    for path in origin.parent.rglob("*.py"):
        parts = path.relative_to(origin.parent).with_suffix("").parts
        yield ".".join([package, *(parts[:-1] if parts[-1] == "__init__" else parts)])


@cache
def installed(package: str) -> str:
    """The version of a package, with its build; "absent" where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
