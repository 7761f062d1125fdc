"""The import law: a module knows only the modules below it, and heavy libraries load only where they are used.

The tables at the top are the law; edit them there. The rest reads every file of the package and compares.
"""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

# Lowest first: a module may import from the rows above its own, never from its own row or a later one.
# A package stands as one name; inside it, files may import each other. "homeostat" is the public face, __init__.py.
LAYERS = (
    ("arrays", "files", "settings", "_native"),
    ("errors", "report"),
    ("frame", "moments", "affine", "noise"),
    ("trust", "shapes"),
    ("plan", "labels"),
    ("door",),
    ("kernels",),
    ("routes",),
    ("ops",),
    ("reading",),
    ("sources", "gains"),
    ("memory",),
    ("forward",),
    ("norm",),
    ("nn", "data", "choosing", "styling", "pixels"),
    ("recognising",),
    ("surgery",),
    ("machines",),
    ("doctor",),
    ("homeostat",),
    ("demo",),
    ("pytest_plugin",),
    ("cli",),
    ("__main__",),
)

# These libraries may load when a file of ours is imported only if the file is listed; elsewhere, inside functions.
OPTIONAL = {"torch", "jax", "dask", "pandas", "safetensors", "sklearn", "PIL"}
MAY_LOAD_OPTIONAL = (
    "nn/*",
    "recognising/*",
    "surgery/*",
    "doctor/*",
    "norm.py",
    "forward.py",
    "memory.py",
    "routes.py",
    "kernels/aten.py",
    "kernels/eager.py",
    "kernels/running.py",
    "kernels/fused.py",
    "kernels/measured.py",
    "kernels/registered.py",
    "kernels/outputs.py",
    "kernels/exchange.py",
    "kernels/ranks.py",
    "kernels/synced.py",
    "machines/*",
)

# What `import homeostat` does not wait for: packages of its own that load where they are used.
LATER = {"nn", "data", "recognising", "surgery", "machines", "doctor", "report", "demo", "pytest_plugin", "cli"}

ROOT = Path(__file__).parents[1] / "src" / "homeostat"
MODULES = {
    ".".join(("homeostat", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


@dataclass(frozen=True)
class Import:
    """One imported name: who, whom, and when it happens."""

    importer: str  # dotted module name
    target: str  # dotted module name
    line: int
    when: str  # "load": as the importer is imported; "call": inside a function; "typing": never at run time

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}: {self.target}"


# ---- the laws ----


def test_imports_between_our_modules_only_point_down():
    rank = {name: number for number, row in enumerate(LAYERS) for name in row}
    unplaced = {layer(module) for module in MODULES} - rank.keys()
    assert not unplaced, f"{sorted(unplaced)} have no layer yet: add them to LAYERS"
    assert [
        str(edge)
        for edge in every_import()
        if layer(edge.target) in rank
        and layer(edge.target) != layer(edge.importer)
        and rank[layer(edge.target)] >= rank[layer(edge.importer)]
        and not (edge.importer == "homeostat" and edge.when == "call")  # the lazy face may name everything
    ] == []


def test_optional_libraries_load_only_with_the_files_that_the_table_lists():
    listed = {module for module in MODULES if any(fnmatch(relative_path(module), glob) for glob in MAY_LOAD_OPTIONAL)}
    assert [
        str(edge)
        for edge in every_import()
        if edge.when == "load" and library(edge) in OPTIONAL and edge.importer not in listed
    ] == []


def test_nothing_that_data_loads_is_torch_or_nn():
    loaded = loaded_with({module for module in MODULES if layer(module) == "data"})
    assert {module for module in loaded if layer(module) == "nn"} == set()
    assert [str(edge) for edge in every_load() if edge.importer in loaded and library(edge) == "torch"] == []


def test_importing_homeostat_and_its_data_layer_loads_no_optional_library():
    names = [name for name in ("homeostat", "homeostat.data") if name in MODULES]
    heavy = OPTIONAL - {"safetensors", "sklearn"}
    assert run(f"import sys, {', '.join(names)}\nprint(*({heavy} & sys.modules.keys()))") == ""


def test_importing_homeostat_waits_for_numpy_the_standard_library_and_little_of_its_own():
    # bench.importing says how long that takes
    loaded = run(
        "import numpy, sys; before = set(sys.modules); import homeostat; print(*(sys.modules.keys() - before))"
    )
    others = {name.partition(".")[0] for name in loaded.split()} - sys.stdlib_module_names
    assert others == {"homeostat"}
    assert {layer(name) for name in loaded.split() if name.startswith("homeostat.")} & LATER == set()


@pytest.mark.parametrize("name", [name for name, path in MODULES.items() if "\n__all__ = " in path.read_text()])
def test_all_lists_exactly_the_visible_public_names(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or is_ours(error.name):
            raise
        pytest.skip(f"{name} needs {error.name}")
    assert sorted(name for name in module.__all__ if is_public(module, name)) == sorted(visible_names(module))


def test_the_reader_tells_imports_at_load_at_call_and_for_typing_apart():
    source = (
        "import numpy as np\n"
        "if TYPE_CHECKING:\n    import torch\n"
        "else:\n    import jax\n"
        "class A:\n    from ..norm import Norm\n"
        "    def f(self):\n        from homeostat import absent_name\n"
    )
    edges = imports_in(source, "homeostat.kernels.cpu", package="homeostat.kernels")
    assert [(edge.target, edge.when) for edge in edges] == [
        ("numpy", "load"),
        ("torch", "typing"),
        ("jax", "load"),
        ("homeostat.norm", "load"),
        ("homeostat", "call"),
    ]


# ---- reading imports ----


@cache
def every_import() -> tuple[Import, ...]:
    return tuple(
        edge for module, path in MODULES.items() for edge in imports_in(path.read_text(), module, package_of(module))
    )


def every_load() -> list[Import]:
    return [edge for edge in every_import() if edge.when == "load"]


def imports_in(source: str, module: str, package: str) -> list[Import]:
    return [
        Import(module, target, statement.lineno, when)
        for statement, when in statements(ast.parse(source), "load")
        for target in targets(statement, package)
    ]


def statements(node: ast.AST, when: str) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """Every import below the node, with the time at which it runs."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, when
    elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        yield from statements(ast.Module(node.body, []), "typing")
        yield from statements(ast.Module(node.orelse, []), when)
    else:
        inside = "call" if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else when
        for child in ast.iter_child_nodes(node):
            yield from statements(child, inside)


def targets(statement: ast.Import | ast.ImportFrom, package: str) -> list[str]:
    """The modules that an import statement names: `from homeostat import frame` names homeostat.frame."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    base = statement.module or ""
    if statement.level:
        anchor = package.split(".")[: 1 - statement.level or None]
        base = ".".join([*anchor, base]).rstrip(".")
    return [name if (name := f"{base}.{alias.name}") in MODULES else base for alias in statement.names]


def loaded_with(modules: set[str]) -> set[str]:
    """These modules, every package around them, and all of ours that they load in turn."""
    reached: set[str] = set()
    while modules:
        reached |= modules
        around = {package_of(module) for module in modules}
        named = {edge.target for edge in every_load() if edge.importer in modules}
        modules = {module for module in around | named if module in MODULES} - reached
    return reached


# ---- small words ----


def layer(module: str) -> str:
    """`homeostat.nn.layers` is of layer nn; `homeostat` of its own."""
    return module.split(".")[1] if module.startswith("homeostat.") else module


def library(edge: Import) -> str:
    return edge.target.partition(".")[0]


def is_ours(module: str) -> bool:
    return module.partition(".")[0] == "homeostat"


def is_package(module: str) -> bool:
    return MODULES[module].name == "__init__.py"


def package_of(module: str) -> str:
    return module if is_package(module) else module.rpartition(".")[0]


def relative_path(module: str) -> str:
    return MODULES[module].relative_to(ROOT).as_posix()


def visible_names(module: ModuleType) -> set[str]:
    """What `dir` shows of our own making; a package also shows what it imports from us, for that is its purpose."""
    name, tree = module.__name__, ast.parse(MODULES[module.__name__].read_text())
    borrowed = {
        alias.asname or alias.name
        for statement, when in statements(tree, "load")
        if when == "load" and not (is_package(name) and all(map(is_ours, targets(statement, package_of(name)))))
        for alias in statement.names
    }
    return {public for public in dir(module) if public not in borrowed and is_public(module, public)}


def is_public(module: ModuleType, name: str) -> bool:
    """Submodules are no names of their own: they become attributes as soon as anyone imports them."""
    return not name.startswith("_") and not isinstance(getattr(module, name), ModuleType)


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
