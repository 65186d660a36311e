"""The error of whoever reads what a person wrote, and what it says of a file that does not fit its sections."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args, get_origin

from tasks.errors import suggest

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError


class InputError(ValueError):
    """The input was wrong: one line that names what was given, what is accepted and what to do."""


def all_errors(section: type[BaseModel], source: str, error: ValidationError) -> str:
    """Return a line for each error of a file (`source`) that `section` describes: its place, and what would do."""
    lines = []
    for item in error.errors(include_url=False):
        place, known = ".".join(map(str, item["loc"])), _fields_at(section, item["loc"][:-1])
        if item["type"] == "extra_forbidden":
            key = str(item["loc"][-1])
            lines.append(f"{source}: {place}: unknown key{suggest(key, known)} Accepted: {', '.join(known)}")
        elif item["type"] == "missing":
            lines.append(f"{source}: {place}: this key is required")
        else:
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{source}: {place}: {message[0].lower()}{message[1:]} (got {item['input']!r})")
    return "\n".join(lines)


def _fields_at(section: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """Return the accepted keys of the part of `section` that `path` points into."""
    from pydantic import BaseModel

    keys = list(path)
    while keys:
        kind = field.annotation if (field := section.model_fields.get(str(keys.pop(0)))) else None
        if get_origin(kind) is dict and keys:  # sections by a name of the user's own
            kind = get_args(kind)[1]
            keys.pop(0)
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return []
        section = kind
    return list(section.model_fields)
