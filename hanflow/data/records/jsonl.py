"""Files with one JSON value a line, and the row that a JSON value is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

from hanflow.data.lines import empty, line_blocks
from hanflow.data.records.layouts import Getter, columns_of, layout_of
from hanflow.data.schema import ColumnMapping, Row, without_surrogates
from hanflow.data.values import Unusable, as_text

LAYOUTS = 1000
"""Most combinations of keys in one file whose columns are remembered."""

NO_LAYOUT = "not a record of the file's layout"
"""Why a value is rejected whose parts are others than those of the first record with its keys."""


class _Number(str):
    """A JSON number as the text that it is in the file: no 1e400 that becomes inf, no integer too long for Python."""

    __slots__ = ()


def _constant(name: str) -> Any:
    return None if name == "NaN" else _Number(name)


_DECODER = json.JSONDecoder(parse_float=_Number, parse_int=_Number, parse_constant=_constant)


def read(mapping: ColumnMapping) -> Iterator[list[Row]]:
    """The rows of a file with one JSON object a line; empty lines are passed over.

    Where only one role is required, a line may also hold its text alone; where columns are given by number, a list.
    """
    objects = Objects(mapping)
    number = 0
    for block in line_blocks(mapping.source):
        rows = []
        for index, line in enumerate(block.lines):
            number += 1
            if index in block.bad:
                rows.append(Row(number, None, line, block.bad[index]))
            elif line.strip():
                try:
                    rows.append(Row(number, objects.values(_decoded(line), "\\u" in line), line))
                except Unusable as error:
                    rows.append(Row(number, None, line, str(error)))
        if objects.unfit is not None and not objects.fitting:  # now, not after a whole file of them
            raise mapping.refusal(objects.unfit)
        yield rows
    if not number:
        raise empty(mapping.path)


def _decoded(line: str) -> Any:
    try:
        return _DECODER.decode(line.strip())
    except RecursionError:
        raise Unusable("not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise Unusable(f"not valid JSON: {error}") from None


class Objects:
    """The objects of one file, each of which may have keys of its own."""

    def __init__(self, mapping: ColumnMapping, within: str = ""):
        self.mapping, self.within = mapping, within
        self.fitting = False
        """Whether an object had the keys needed."""
        self.unfit: tuple[str, ...] | None = None
        """Columns of the first object that lacked some."""
        self._layouts: dict[tuple[Any, ...], tuple[dict[str, tuple[str, Getter]], list[str]]] = {}
        """Keys of an object, and which of them hold objects or lists of such → (role → its column and what gets it, the
        roles lacking)."""
        self._unknown: set[tuple[Any, ...]] = set()
        """Those of no known layout, of objects that have something inside."""

    def values(self, item: Any, escaped: bool) -> dict[str, Any]:
        """Role → text of one value.

        Args:
            escaped: whether it may hold half of a surrogate pair, as an escape of JSON: text in no encoding.

        Raises:
            Unusable: it cannot be used.
            UserError: every row has to be usable, and the first object lacks columns.
        """
        mapping, source = self.mapping, self.mapping.source
        if isinstance(item, list) and mapping.numbered:
            item = {str(place): value for place, value in enumerate(item, 1)}
        if isinstance(item, dict):
            chosen = self._chosen(item)
        elif len(mapping.required) == 1 and (item is None or item.__class__ in (str, list)):
            item, chosen = {mapping.text_role: item}, {mapping.text_role: (mapping.text_role, _only)}
        else:
            raise Unusable("not a JSON object" + " or a text" * (len(mapping.required) == 1))
        values = dict(mapping.absent)
        for role, (name, get) in chosen.items():
            try:
                value = get(item)
            except (KeyError, TypeError, AttributeError, IndexError):
                raise Unusable(NO_LAYOUT) from None
            if value.__class__ is not str:
                value = as_text(value, name, source.missing, source.join_lists)
            if escaped and not source.every_row:
                value = without_surrogates(value) if isinstance(value, str) else [*map(without_surrogates, value)]
            values[role] = value
        return values

    def _chosen(self, item: dict[str, Any]) -> dict[str, tuple[str, Getter]]:
        mapping = self.mapping
        nested = tuple([key for key, value in item.items() if value.__class__ is not str and _nested(value)])
        keys: tuple[Any, ...] = (*item, nested)
        # A record may be empty where its layout shows, and the next one not.
        if keys not in self._layouts or (keys in self._unknown and layout_of(item, self.within)):
            if len(self._layouts) >= LAYOUTS:  # objects of ever new keys must not fill the memory
                self._layouts.clear()
                self._unknown.clear()
            layout = layout_of(item, self.within)
            (self._unknown.discard if layout or not nested else self._unknown.add)(keys)
            getters = columns_of(item, mapping.source, layout)
            if layout is None:  # so that it is said of a column that it holds no text
                getters |= {key: itemgetter(key) for key in item if key not in getters}
            names = tuple(getters)
            if not self.fitting:
                (mapping.resolve if mapping.source.every_row else mapping.sole)(names)
            places = mapping.find(names)
            missing = mapping.missing(places)
            if missing and self.unfit is None:
                self.unfit = names
            self._layouts[keys] = (
                {role: (names[place], getters[names[place]]) for role, place in places.items()},
                missing,
            )
        chosen, missing = self._layouts[keys]
        if missing:
            raise Unusable(f"the object has no key for {', '.join(missing)}")
        self.fitting = True
        return chosen


def _nested(value: Any) -> bool:
    """Whether a value is an object, or a list whose first item that holds something is an object or a list."""
    if value.__class__ is list:
        value = next((item for item in value if item), None)
        return value.__class__ in (dict, list)
    return value.__class__ is dict


def _only(item: dict[str, Any]) -> Any:
    (value,) = item.values()
    return value
