"""What a JSON file holds, against the types that are expected of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

NUMBERS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}


def typed(value: Any, hint: Any, place: str = "") -> Any:
    """`value` of the type `hint`: dataclasses from objects, tuples from lists, else as it is.

    Known are None, bool, int, float, str, `Any`, lists, tuples of one type, mappings from text, unions with None, and
    dataclasses, of which all fields are expected. Raises `TypeError`, naming the `place`, if it is of another type.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        if value is None and NoneType in inner:
            return None
        (other,) = (one for one in inner if one is not NoneType)
        return typed(value, other, place)
    if is_dataclass(hint) and isinstance(hint, type):
        hints, names = get_type_hints(hint), [field.name for field in fields(hint)]
        _expect(isinstance(value, dict) and value.keys() == set(names), place, f"an object with {names}", value)
        return hint(**{name: typed(value[name], hints[name], f"{place}.{name}") for name in names})
    if origin in (list, tuple):
        _expect(isinstance(value, list), place, "a list", value)
        found = [typed(item, inner[0], f"{place}[{number}]") for number, item in enumerate(value)]
        return tuple(found) if origin is tuple else found
    if origin in (dict, Mapping):
        _expect(isinstance(value, dict), place, "an object", value)
        return {name: typed(item, inner[1], f"{place}.{name}") for name, item in value.items()}
    kinds = (int, float) if hint is float else (hint,)
    plain = isinstance(value, kinds) and (hint is bool or not isinstance(value, bool))
    _expect(plain, place, NUMBERS[hint], value)
    return value


def _expect(fits: bool, place: str, expected: str, value: Any) -> None:
    if not fits:
        shown = repr(value)
        raise TypeError(f"{place.lstrip('.')}: expected {expected}, got {shown[:60]}{'…' * (len(shown) > 60)}")
