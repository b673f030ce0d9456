"""Files that hanflow, or whoever writes experiments, leaves for it to read back: JSON and YAML.

They are read within limits of size and depth, and what is damaged is refused by name; they are replaced as a whole, so
that a full disk, a lost permission or a kill leaves the old content.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from hanflow.errors import UserError, file_error

MOST_BYTES = 256 << 20
"""Largest JSON file that is read: a manifest lists files, a record of a training holds every logged figure."""
MOST_YAML_BYTES = 256 << 10
MOST_VALUES = 100_000
"""Most values of a YAML file, each alias counted as all that it stands for."""
MOST_LEVELS = 40
"""Most nested YAML values."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How the text file begins that stands in the place of a file in Git Large File Storage."""


class Damaged(UserError):
    """A file is not what it should be; the message names it, what is wrong and what to do."""


def parse_json(content: bytes, place: object, cure: str, *, expected: type = dict, strict: bool = True) -> Any:
    """The value in the content of a JSON file.

    Args:
        place: the file, for messages.
        cure: what to do about a damaged one.
        expected: type of the value.
        strict: whether numbers that are not finite are refused; files of other programs hold some.

    Raises:
        Damaged: it is no JSON, or a value of another type.
    """
    numbers: dict[str, Any] = {"parse_constant": _not_finite, "parse_float": _finite} if strict else {}
    try:
        value = json.loads(_text(content), **numbers)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{place}: is damaged ({_brief(error)}); {cure}") from None
    if not isinstance(value, expected):
        raise Damaged(f"{place}: is damaged (a {type(value).__name__} in the place of a {expected.__name__}); {cure}")
    return value


def read_json(path: Path, cure: str, *, expected: type = dict, keys: Mapping[str, type] | None = None) -> Any:
    """`parse_json` of a file.

    Args:
        keys: what the mapping has to hold: key → type of its value.

    Raises:
        Damaged: see `parse_json`; a key is missing or of another type; the file is larger than MOST_BYTES.
        UserError: it cannot be read. FileNotFoundError: it is not there.
    """
    value = parse_json(read_file(path), path, cure, expected=expected)
    for key, kind in (keys or {}).items():
        if not isinstance(value.get(key), kind):
            raise Damaged(f"{path}: is damaged (no {key}, or not a {kind.__name__}); {cure}")
    return value


def read_file(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file.

    Raises:
        Damaged: it is larger than `most` bytes, or no regular file. UserError: it cannot be read.
        FileNotFoundError: it is not there.
    """
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise Damaged(f"{path}: is a folder; give a file")
        if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for whoever writes into it
            raise Damaged(f"{path}: is no regular file; give one")
        if found.st_size > most:
            raise Damaged(f"{path}: has {found.st_size:,} bytes, at most {most:,} are read; give another file")
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise file_error(error, path) from None


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as strict JSON, readable; parts of file names that are not UTF-8 as escapes.

    Raises:
        ValueError: it holds a number that is not finite.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    return text.encode("utf-8", "backslashreplace").decode()  # \udcff is how JSON, too, spells such a part


def parse_yaml(text: str | bytes, place: object) -> Any:
    """The value in a YAML text: mappings, lists, texts, numbers, true, false and null; dates are texts.

    Args:
        place: the file or setting, for messages.

    Raises:
        Damaged: it is no YAML, has a value twice, or is nested too deep or too large. The message names the place and,
            where the structure can be read, the key.
    """
    try:
        if len(text) > MOST_YAML_BYTES:
            raise ValueError(f"{len(text):,} bytes; at most {MOST_YAML_BYTES:,} are read")
        loader = _Loader(_text(text) if isinstance(text, bytes) else text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check(node, loader)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, OverflowError) as error:
        raise Damaged(f"{place}: not valid YAML: {_brief(error)}; correct it") from None


def read_yaml(path: Path) -> Any:
    """`parse_yaml` of a file; see there and `read_file` for what is raised."""
    return parse_yaml(read_file(path, MOST_YAML_BYTES), path)


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file as a whole: whatever interrupts it, the old content or the new one is there.

    Raises:
        UserError: it cannot be written; the old one is as it was.
    """
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(fresh, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise file_error(error, path) from error


def _text(content: bytes) -> str:
    if not content.strip():
        raise ValueError("it is empty")
    if content.startswith(LFS_POINTER):
        raise ValueError("it is a Git LFS pointer, not the file: git lfs pull")
    return content.decode("utf-8-sig")


def _not_finite(name: str) -> float:
    raise ValueError(f"{name} is no number of strict JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _not_finite(text)


def _brief(error: BaseException) -> str:
    """What is wrong, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        mark = error.problem_mark or error.context_mark
        what = f"{error.context}, {error.problem}" if error.context else error.problem
        return f"{what[:200]}{f' (line {mark.line + 1}, column {mark.column + 1})' if mark else ''}"
    if isinstance(error, RecursionError):
        return "nested too deep"
    return " ".join(str(error).split())[:300]


class _Loader(yaml.SafeLoader):
    """YAML without dates: `2001-99-99` is a text, and what a setting makes of it is that setting's affair."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - so PyYAML declares it
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _check(root: yaml.Node, loader: _Loader) -> None:
    """Refuse what would take long or much memory, or mean two things.

    Raises:
        ValueError: with the key.
    """
    sizes: dict[int, int] = {}
    above: list[int] = []

    def size(node: yaml.Node, key: str) -> int:
        if id(node) in above:
            raise ValueError(f"{key}: refers to itself")
        if len(above) >= MOST_LEVELS:
            raise ValueError(f"{key[:80]}: nested too deep")
        if id(node) not in sizes:
            above.append(id(node))
            if isinstance(node, yaml.ScalarNode):
                _check_scalar(node, key, loader)
            sizes[id(node)] = 1 + sum(size(child, name) for child, name in _children(node, key))
            above.pop()
        if sizes[id(node)] > MOST_VALUES:
            raise ValueError(f"{key}: more than {MOST_VALUES:,} values, aliases counted")
        return sizes[id(node)]

    size(root, "")


def _children(node: yaml.Node, key: str) -> Iterator[tuple[yaml.Node, str]]:
    if isinstance(node, yaml.SequenceNode):
        yield from ((child, f"{key}[{number}]") for number, child in enumerate(node.value))
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for name, child in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise ValueError(f"{key or 'the file'}: a key that is no text (line {name.start_mark.line + 1})")
            dotted = f"{key}.{name.value}" if key else name.value
            if name.value in seen:
                raise ValueError(f"{dotted}: is given twice (line {name.start_mark.line + 1})")
            seen.add(name.value)
            if not name.tag.endswith(":merge"):  # `<<`
                yield name, dotted
            yield child, dotted


def _check_scalar(node: yaml.ScalarNode, key: str, loader: _Loader) -> None:
    if any("\ud800" <= character <= "\udfff" for character in node.value):
        raise ValueError(
            f"{key.encode('utf-8', 'backslashreplace').decode()}: holds half a character (\\ud800…\\udfff)"
        )
    try:
        value = loader.construct_object(node)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{key}: {error}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{key}: {_brief(error)}") from None
    if not isinstance(value, (str, int, float, bool, type(None))):
        raise ValueError(f"{key}: {node.tag} is no setting's type; give a text, a number, true or false")
