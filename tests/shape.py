"""Prints the shape of the package: ``python tests/shape.py [FOLDER]``, the folder of another version for a comparison.

It counts what the architecture promises: nothing flat in the root, few packages, imports that only go down, short functions and
files, no retired names. It exits with 1 if a promise is broken.
"""

from __future__ import annotations

import ast
import functools
import io
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "lightning_explain"
ROOT = Path(__file__).parents[1] / PACKAGE

# A package imports from packages of lower levels and from itself, never beside or above.
LEVELS = {
    "core": 1,
    "distributed": 1,
    "model": 2,
    "modalities": 2,
    "probes": 3,
    "targets": 3,
    "render": 3,
    "store": 3,
    "engine": 4,
    "loggers": 4,
    "methods": 5,
    "metrics": 5,
    "checks": 5,
    "explainer": 6,
    "monitor": 7,
    "report": 8,
    "demo": 9,
    "cli": 10,
}
FLAT = {"__init__.py", "__main__.py"}
"""The only Python files in the package's root."""
LONGEST_BODY = 40
LONGEST_FILE = 300

_LIGHTNING = {"loggers", "monitor", "demo"}
_LOGGERS = {"loggers"}
# Libraries that only some packages may import.
LIBRARIES: dict[str, set[str]] = {
    "lightning": _LIGHTNING,
    "pytorch_lightning": _LIGHTNING,
    "lightning_fabric": _LIGHTNING,
    "wandb": _LOGGERS,
    "mlflow": _LOGGERS,
    "comet_ml": _LOGGERS,
    "tensorboard": _LOGGERS,
    "torch.utils.tensorboard": _LOGGERS,
    "omegaconf": {"monitor"},
    "hydra": {"monitor", "report"},
    "captum": {"model", "engine", "methods", "metrics", "checks"},
    "mlxtend": {"demo"},
    "matplotlib.pyplot": set(),
    "pylab": set(),
}

# Names of version 0.1 that standard terms have replaced.
RETIRED = frozenset(
    [
        "Rows",
        "rows",
        "row",
        "rows_of",
        "rows_for",
        "rows_needed",
        "check_rows",
        "joined_rows",
        "FixedRows",
        "per_row",
        "Visit",
        "visit",
        "visits",
        "visits_of",
        "Want",
        "want",
        "wants",
        "Spot",
        "spot",
        "spots",
        "look",
        "look_at_pairs",
        "Look",
        "Stop",
        "Block",
        "Stream",
        "Streamed",
        "streams",
        "Readers",
        "readers",
        "Subject",
        "subject",
        "subjects",
        "Explained",
        "Case",
        "case",
        "Prospect",
        "prospect",
        "Keeper",
        "KEEPERS",
        "keeper",
        "Parts",
        "Mend",
        "MENDS",
        "mend",
        "mends",
        "mended",
        "Patient",
        "patient",
        "_Patient",
        "_Portion",
        "traits",
        "rehearse",
        "_rehearse",
        "Teller",
        "teller",
        "_teller",
        "tell_once",
        "tell_of_off",
        "told",
        "_told",
        "telling",
        "untold",
        "Meeting",
        "_meeting",
        "paced",
        "pace",
        "_pace",
        "Rhythm",
        "rhythm",
        "_rhythm",
        "way_out",
        "WAY_OUT",
        "_WAY_OUT",
        "FLOORS",
        "ROOMS",
        "room",
        "sweep",
        "swept",
        "laid_out",
    ]
)
# Pictures have rows, and so has a table.
ROWS_OF_PICTURES = frozenset({"rows", "row"})


def package_of(module: str) -> str:
    """The package of ``lightning_explain.<package>...``; empty for the root itself."""
    return [*module.split("."), ""][1]


def imports(source: str, module: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported anywhere in a module, lazily or for type checking too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, module, is_package)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _imports_by_name(node):
            yield node.lineno, node.args[0].value  # type: ignore[attr-defined]


def _base(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parents = module.split(".")[: None if is_package and node.level == 1 else (1 if is_package else 0) - node.level]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _imports_by_name(node: ast.Call) -> bool:
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    first = node.args[0] if node.args else None
    return name in ("import_module", "__import__") and isinstance(first, ast.Constant) and isinstance(first.value, str)


def wrong(source: str, module: str, is_package: bool = False) -> list[str]:
    """What is wrong with a module's imports; each entry says where and why."""
    package = package_of(module)
    if package not in LEVELS:
        return [f"{module} is in no package of LEVELS; move it into one"]
    found = ((line, name, _fault(package, name)) for line, name in imports(source, module, is_package))
    return [f"{module}:{line} imports {name}: {fault}" for line, name, fault in found if fault]


def _fault(package: str, name: str) -> str | None:
    if name.split(".")[0] == PACKAGE:
        return _own_fault(package, package_of(name))
    for library, packages in LIBRARIES.items():
        if f"{name}.".startswith(f"{library}.") and package not in packages:
            return f"{library} is only for {', '.join(sorted(packages)) or 'nobody'}"
    return None


def _own_fault(package: str, other: str) -> str | None:
    if other not in LEVELS:
        return "import from the package that defines it, not from the root"
    if other == package or LEVELS[other] < LEVELS[package]:
        return None
    return f"{package} is on level {LEVELS[package]}, {other} on level {LEVELS[other]}; only lower levels are allowed"


def modules(root: Path = ROOT) -> list[tuple[str, Path]]:
    """Every module but the two of the root, which import lazily from everywhere."""
    files = sorted(path for path in root.rglob("*.py") if path.parent != root or path.name not in FLAT)
    return [(".".join([PACKAGE, *_parts(path, root)]), path) for path in files]


def _parts(path: Path, root: Path) -> tuple[str, ...]:
    parts = path.relative_to(root).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def retired(source: str, of_pictures: bool = False) -> set[str]:
    """The retired identifiers that a source still has; the package that draws pictures may speak of their rows."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    allowed = ROWS_OF_PICTURES if of_pictures else frozenset()
    return {token.string for token in tokens if token.type == tokenize.NAME} & (RETIRED - allowed)


def long_bodies(source: str) -> list[str]:
    """``name (lines)`` of each function whose body, docstring apart, is too long."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = [part for part in node.body if not _is_docstring(part)]
            lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            if lines > LONGEST_BODY:
                found.append(f"{node.name} ({lines})")
    return found


def code_lines(source: str) -> int:
    """Lines of code: without docstrings, comments and blank lines."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        for part in getattr(node, "body", ()) if isinstance(getattr(node, "body", ()), list) else ():
            if _is_docstring(part):
                docstrings |= set(range(part.lineno, part.end_lineno + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.NAME, tokenize.NUMBER, tokenize.OP, tokenize.STRING):
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@dataclass(frozen=True)
class Shape:
    """What was counted; every list names what breaks a promise."""

    flat: list[str]
    packages: list[str]
    arrows: list[str]
    bodies: list[str]
    files: list[str]
    names: list[str]
    lines: int
    modules: int

    @property
    def promised(self) -> bool:
        """Whether every promise holds."""
        return len(self.flat) <= 3 and len(self.packages) <= 18 and not (self.arrows or self.bodies or self.names)


@functools.cache
def shape(root: Path = ROOT) -> Shape:
    """Counts the package in a folder."""
    sources = {path: path.read_text() for path in sorted(root.rglob("*.py"))}
    short = {path: str(path.relative_to(root)) for path in sources}
    pictures = {path: path.parent.name in ("render", "cli") for path in sources}
    return Shape(
        flat=sorted(path.name for path in root.glob("*.py")),
        packages=sorted(path.parent.name for path in root.glob("*/__init__.py")),
        arrows=[fault for name, path in modules(root) for fault in wrong(sources[path], name, path.stem == "__init__")],
        bodies=[f"{short[path]}: {name}" for path, source in sources.items() for name in long_bodies(source)],
        files=[
            f"{short[path]} ({len(source.splitlines())})"
            for path, source in sources.items()
            if len(source.splitlines()) > LONGEST_FILE
        ],
        names=[
            f"{short[path]}: {name}"
            for path, source in sources.items()
            for name in sorted(retired(source, pictures[path]))
        ],
        lines=sum(map(code_lines, sources.values())),
        modules=len(sources),
    )


def _line(what: str, count: int, names: Iterable[str]) -> str:
    listed = list(names)
    return f"{what:42} {count:6}  {', '.join(listed[:6])}{' ...' if len(listed) > 6 else ''}".rstrip()


def main(folder: str | None = None) -> int:
    """Prints the counts, and returns the exit code."""
    found = shape(Path(folder) if folder else ROOT)
    for text in (
        _line("files in the root", len(found.flat), found.flat),
        _line("packages", len(found.packages), found.packages),
        _line("modules", found.modules, ()),
        _line("imports sideways, up, or not allowed", len(found.arrows), found.arrows),
        _line(f"function bodies over {LONGEST_BODY} lines", len(found.bodies), found.bodies),
        _line(f"files over {LONGEST_FILE} lines", len(found.files), found.files),
        _line("retired identifiers", len(found.names), found.names),
        _line("lines of code", found.lines, ()),
    ):
        print(text)
    return 0 if found.promised else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
