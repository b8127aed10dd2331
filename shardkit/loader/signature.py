"""Gives `from_env` the keyword options of `__init__` without writing them twice. `__init__` checks them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

_Options = ParamSpec("_Options")
_Result = TypeVar("_Result")


def with_options_of(
    init: Callable[Concatenate[Any, _Options], None], *, but: tuple[str, ...]
) -> Callable[[Callable[..., _Result]], Callable[Concatenate[Any, _Options], _Result]]:
    """Give a function the parameters of `init`, for type checkers, `help` and completion.

    Those named in `but` the function sets itself: they are not in the signature, and giving one is a `TypeError`.
    """

    def sign(function: Callable[..., _Result]) -> Callable[Concatenate[Any, _Options], _Result]:
        parameters = [one for name, one in inspect.signature(init).parameters.items() if name not in but]
        own = inspect.signature(function)
        function.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        return function

    return sign
