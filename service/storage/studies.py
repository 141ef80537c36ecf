"""StudyStore: the part of the storage that knows studies, not trials."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from service.database.connection import SharedConnection
from service.optuna_private import DEFAULT_STUDY_NAME_PREFIX, FrozenStudy
from service.storage import rows

CREATE = """-- A study with its directions; no row if the name is taken.
WITH new AS (
    INSERT INTO studies (study_name) VALUES (%(name)s)
    ON CONFLICT (study_name) DO NOTHING RETURNING study_id),
directed AS (
    INSERT INTO study_directions (study_id, objective, direction)
    SELECT study_id, place - 1, direction::studydirection
      FROM new, unnest(%(directions)s::text[]) WITH ORDINALITY AS given (direction, place))
SELECT study_id FROM new"""
DELETE = "SELECT service.delete_study(%(study_id)s)"
ID = "SELECT study_id FROM studies WHERE study_name = %(name)s"
NAME_AND_DIRECTIONS = """-- A study's name and directions.
SELECT json_build_array(study_name, (
         SELECT json_agg(direction ORDER BY objective) FROM study_directions d
          WHERE d.study_id = s.study_id))::text
  FROM studies s WHERE study_id = %(study_id)s"""
ATTRS = """-- One kind of a study's attributes; null if there is no study.
SELECT coalesce((SELECT json_object_agg(key, value_json) FROM study_{kind}_attributes a
                  WHERE a.study_id = s.study_id), '{{}}')::text
  FROM studies s WHERE study_id = %(study_id)s"""
SET_ATTR = """-- Set or replace one attribute of a study that exists.
INSERT INTO study_{kind}_attributes (study_id, key, value_json)
SELECT study_id, %(key)s, %(value)s FROM studies WHERE study_id = %(study_id)s
ON CONFLICT (study_id, key) DO UPDATE SET value_json = excluded.value_json
RETURNING study_id"""
ALL = """-- Every study with its directions and attributes.
SELECT coalesce(json_agg(json_build_array(study_id, study_name,
         (SELECT json_agg(direction ORDER BY objective) FROM study_directions d
           WHERE d.study_id = s.study_id),
         (SELECT json_object_agg(key, value_json) FROM study_user_attributes a
           WHERE a.study_id = s.study_id),
         (SELECT json_object_agg(key, value_json) FROM study_system_attributes a
           WHERE a.study_id = s.study_id)) ORDER BY study_id), '[]')::text
  FROM studies s"""


class StudyStore(BaseStorage):
    """Names, directions, attributes and deletion of studies; each call is one statement.

    Args:
        connection: The database.
    """

    def __init__(self, connection: SharedConnection) -> None:
        self._connection = connection

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        name = f"{DEFAULT_STUDY_NAME_PREFIX}{uuid.uuid4()}" if study_name is None else study_name
        arguments = {"name": name, "directions": [direction.name for direction in directions]}
        study_id = self._connection.query_once(CREATE, arguments)
        if study_id is None:
            raise DuplicatedStudyError(f"there is a study of the name {name!r} already")
        return int(study_id)

    def delete_study(self, study_id: int) -> None:
        if not is_id(study_id):
            raise no_study(study_id)
        answer = self._connection.query_noting_repeats(DELETE, {"study_id": study_id})
        if not answer.value and not answer.is_repeated:
            raise no_study(study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._set_study_attr("user", study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._set_study_attr("system", study_id, key, value)

    def _set_study_attr(self, kind: str, study_id: int, key: str, value: Any) -> None:
        try:
            arguments = {"study_id": study_id, "key": key, "value": json.dumps(value)}
            found = self._connection.query(SET_ATTR.format(kind=kind), arguments)
        except (StorageInternalError, TypeError, ValueError):
            StudyStore._name_and_directions(self, study_id)  # a missing study is the first error
            if "\0" in key:  # stock looks for the key before it looks at the value
                raise ValueError("the key of an attribute cannot contain NUL") from None
            raise
        if found is None:
            raise no_study(study_id)

    def get_study_id_from_name(self, study_name: str) -> int:
        study_id = self._connection.query(ID, {"name": study_name})
        if study_id is None:
            raise KeyError(f"there is no study of the name {study_name!r}")
        return int(study_id)

    def get_study_name_from_id(self, study_id: int) -> str:
        # Not from memory, where a subclass keeps directions: a study may be renamed.
        return StudyStore._name_and_directions(self, study_id)[0]

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._name_and_directions(study_id)[1]

    def _name_and_directions(self, study_id: int) -> tuple[str, list[StudyDirection]]:
        text = self._connection.query(NAME_AND_DIRECTIONS, {"study_id": study_id})
        if text is None:
            raise no_study(study_id)
        name, directions = json.loads(text)
        return name, _directions(directions)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._study_attrs("user", study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._study_attrs("system", study_id)

    def _study_attrs(self, kind: str, study_id: int) -> dict[str, Any]:
        text = self._connection.query(ATTRS.format(kind=kind), {"study_id": study_id})
        if text is None:
            raise no_study(study_id)
        return _attrs(json.loads(text))

    def get_all_studies(self) -> list[FrozenStudy]:
        return [
            FrozenStudy(
                study_name=name,
                direction=None,
                directions=_directions(directions),
                user_attrs=_attrs(user),
                system_attrs=_attrs(system),
                study_id=study_id,
            )
            for study_id, name, directions, user, system in json.loads(self._connection.query(ALL))
        ]


def _directions(names: Sequence[str] | None) -> list[StudyDirection]:
    return [StudyDirection[name] for name in names or ()]


def _attrs(texts: dict[str, str] | None) -> dict[str, Any]:
    return {key: rows.attribute(key, text) for key, text in (texts or {}).items()}


def is_id(number: int) -> bool:
    """Whether a number can be an id: our functions take integers of four bytes."""
    return -(2**31) <= number < 2**31


def no_study(study_id: int) -> KeyError:
    """The error that Optuna's storages raise for a study that does not exist."""
    return KeyError(f"there is no study with the id {study_id}")
