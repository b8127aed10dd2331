"""The caller's functions (`transform`, `filter`): their bytes for the workers, and a name that says what they do."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

from shardkit.errors import UsageError


def by_value(function: Callable[..., Any] | None) -> bytes | None:
    """dill's bytes of a function and the globals that it uses. Raises `UsageError` if it is none, or cannot travel."""
    import dill

    if function is None:
        return None
    if not callable(function):
        raise UsageError(f"transform and filter are functions of a text, got a {type(function).__name__}")
    try:
        return bytes(dill.dumps(function, recurse=True))
    except Exception as error:
        raise UsageError(
            f"{getattr(function, '__qualname__', function)} cannot travel to the workers ({error}): open files, locks "
            "and connections inside the function, not around it"
        ) from error


def function_id(function: Any) -> str | None:
    """What a function does, in a few letters that are the same in every process: its code, defaults and closure."""
    if function is None:
        return None
    digest = hashlib.sha256(_content(function).encode()).hexdigest()[:16]
    return f"{getattr(function, '__qualname__', type(function).__qualname__)} {digest}"


def _content(value: Any) -> str:
    """A spelling without addresses or set order, which `repr` of nested code and of sets would bring in."""
    if isinstance(value, CodeType):
        return f"code({value.co_code.hex()} {value.co_names} {[_content(constant) for constant in value.co_consts]})"
    if isinstance(value, frozenset | set):
        return f"set({sorted(map(_content, value))})"
    if isinstance(value, tuple | list):
        return f"list({[_content(item) for item in value]})"
    if isinstance(value, functools.partial):
        return f"partial({_content([value.func, value.args, sorted(value.keywords.items())])})"
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell.cell_contents is not value]
        return f"def({_content([value.__code__, value.__defaults__, cells])})"
    return repr(value) if isinstance(value, str | bytes | int | float | complex | None) else repr(type(value))
