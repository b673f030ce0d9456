"""A raw row, and which raw column plays which role."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hanflow.config import PreprocessConfig
from hanflow.errors import UserError
from hanflow.tasks.data import Column


class Row(NamedTuple):
    """One raw row."""

    number: int
    """As a person counts in that file, from 1: the line where the row begins, or the record of a file without lines."""
    values: dict[str, str] | None
    """Role → raw text, "" for optional roles that the file does not have; None: the row cannot be used."""
    raw: str | None
    """The row as it stands in the file, for showing; None: nothing better than `values`."""
    reason: str = ""
    """Why the row cannot be used."""

    def shown(self) -> str:
        """The raw text that is kept of a rejected row."""
        return self.raw if self.raw is not None else json.dumps(self.values, ensure_ascii=False)


def without_surrogates(text: str) -> str:
    """Text without lone surrogates, which JSON can spell (\\ud800) and no encoding can hold."""
    return text.encode("utf-8", "ignore").decode("utf-8")


class ColumnMapping:
    """Which raw column of one file plays which role."""

    def __init__(self, path: str, columns: Sequence[Column], config: PreprocessConfig):
        self.path = path
        self.columns = tuple(columns)
        self.roles = tuple(column.role for column in columns)
        self.required = tuple(column.role for column in columns if column.required)
        self.given = check_columns(config.columns, columns)

    def find(self, found: Sequence[str]) -> dict[str, int]:
        """Role → index in `found` of the raw column that plays it; roles without one are left out.

        A role that the settings name is looked for by that name only, else by its aliases, the first that exists.
        Names are compared without case and surrounding blanks.
        """
        places: dict[str, int] = {}
        for index, name in reversed(list(enumerate(found))):  # of two columns of one name the first wins
            places[_key(name)] = index
        chosen = {}
        for column in self.columns:
            wanted = (self.given[column.role],) if column.role in self.given else column.aliases
            place = next((places[_key(name)] for name in wanted if _key(name) in places), None)
            if place is not None:
                chosen[column.role] = place
        return chosen

    def missing(self, chosen: Mapping[str, int]) -> list[str]:
        """The roles that must have a raw column and have none."""
        return [role for role in self.roles if role not in chosen and (role in self.required or role in self.given)]

    def resolve(self, found: Sequence[str]) -> dict[str, int]:
        """`find`, complete.

        Raises:
            UserError: a role that is required or named in the settings has no column.
        """
        chosen = self.find(found)
        if self.missing(chosen):
            raise self.refusal(found)
        return chosen

    def refusal(self, found: Sequence[str]) -> UserError:
        """Why no row of this file can be used, what was looked for, and what to do."""
        chosen = self.find(found)
        aliases = {column.role: column.aliases for column in self.columns}
        looked_for = " and ".join(
            f"{role} (preprocess.columns says {self.given[role]!r})"
            if role in self.given
            else f"{role} (looked for {', '.join(aliases[role])})"
            for role in self.missing(chosen)
        )
        names = [name.strip()[:50] for name in found[:20]]
        example = {role: names[chosen[role]] if chosen.get(role, 99) < len(names) else "..." for role in self.required}
        return UserError(
            f"{self.path}: has no column for {looked_for}; columns found: {', '.join(names) or 'none'}; "
            f"say which column plays which role: preprocess.columns='{json.dumps(example, ensure_ascii=False)}'"
        )


def _key(name: str) -> str:
    return name.strip().casefold()


def check_columns(given: Mapping[str, object], columns: Sequence[Column]) -> dict[str, str]:
    """The setting `preprocess.columns`, once every role in it is one of the task's.

    Raises:
        UserError: a role that the task does not have.
    """
    roles = [column.role for column in columns]
    for role in given:
        if role not in roles:
            near = difflib.get_close_matches(str(role), roles, n=1)
            raise UserError(
                f"preprocess.columns: this task has no role {role!r}"
                + (f", did you mean {near[0]!r}?" if near else "")
                + f" Roles: {', '.join(roles)}; write it as role → raw column, "
                f"""for example {{"{roles[0]}": "the raw column's name"}}"""
            )
    return {role: str(name) for role, name in given.items() if name is not None}
