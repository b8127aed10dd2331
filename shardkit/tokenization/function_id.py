"""An id of what a caller's function does: the same in every process, and another one for another behaviour.

It covers the code and all that the code reaches by name: defaults, closure, globals, the state of objects and of bound
methods, helpers and what they use in turn, also in modules of the caller's own. What is installed (Python's library,
packages) counts by name and version only. Files and the environment that a function reads are not seen.
"""

from __future__ import annotations

import copyreg
import dis
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
import sysconfig
import types
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from shardkit.errors import UsageError

_ATOMS = (type(None), type(...), type(NotImplemented), bool, int, float, complex, str, bytes)
_DESCRIPTORS = (
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)
_OF_THIS_MACHINE = {"__builtins__", "__cached__", "__file__", "__loader__", "__path__", "__spec__"}
# Of a class: what Python derives from the rest, some of it in the order of a set.
_DERIVED = {
    "__abstractmethods__",
    "__annotate__",
    "__annotate_func__",
    "__annotations__",
    "__annotations_cache__",
    "__dataclass_fields__",
    "__dataclass_params__",
    "__dict__",
    "__doc__",
    "__firstlineno__",
    "__module__",
    "__static_attributes__",
    "__weakref__",
    "_abc_impl",
}


def function_id(function: Any) -> str | None:
    """What `function` does, in a few letters: its name and a hash, or the version that its caller names.

    `function.shardkit_version = "2"` stands for all that the function is and uses. Raises `UsageError` for a function
    that uses what cannot be described, such as a lock, and names no version.
    """
    if function is None:
        return None
    name = getattr(function, "__qualname__", type(function).__qualname__)
    if (version := getattr(function, "shardkit_version", None)) is not None:
        return f"{name} version {version}"
    try:
        return f"{name} {_Walk().digest(function).hex()[:16]}"
    except _Undescribed as error:
        raise UsageError(
            f"{name} uses {error}, so a change of it would not be noticed when the run goes on: make that inside the "
            f'function, or name what the function does (`{name.rpartition(".")[2]}.shardkit_version = "1"`), anew with '
            "every change"
        ) from None


class _Undescribed(Exception):
    """Something whose content cannot be described."""


class _Walk:
    """One walk through a function and what it uses. The digest of each thing depends on its content, not on where it
    lies in memory, nor on the order of sets; what refers to itself is known by its depth in the walk."""

    def __init__(self) -> None:
        self._done: dict[int, bytes] = {}
        self._depth: dict[int, int] = {}
        self._alive: list[Any] = []  # so that no address is used twice

    def digest(self, value: Any) -> bytes:
        """The digest of `value`. Raises `_Undescribed`."""
        if type(value) in _ATOMS:
            return _hash(_atom(value))
        key = id(value)
        if key in self._done:
            return self._done[key]
        if key in self._depth:
            return _hash(["itself", str(self._depth[key])])
        self._depth[key] = len(self._depth)
        self._alive.append(value)
        try:
            digest = _hash(self._parts(value))
        except RecursionError:
            raise _Undescribed(f"a {type(value).__qualname__} that is nested too deep to describe") from None
        finally:
            del self._depth[key]
        self._done[key] = digest
        return digest

    def _parts(self, value: Any) -> Iterator[str | bytes]:
        kind = type(value)
        yield kind.__qualname__
        if isinstance(value, types.CodeType):
            yield from self._code(value)
        elif isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, types.ModuleType):
            yield from self._module(value, frozenset())
        elif isinstance(value, type):
            yield from self._class(value)
        elif kind in (set, frozenset):
            yield from sorted(map(self.digest, value))
        elif kind in (list, tuple):
            yield from map(self.digest, value)
        elif kind in (dict, types.MappingProxyType):
            for key, item in value.items():
                yield from (self.digest(key), self.digest(item))
        elif isinstance(value, types.CellType):
            with suppress(ValueError):  # an empty one: the name has no value yet
                yield self.digest(value.cell_contents)
        elif isinstance(value, types.MethodType | types.BuiltinFunctionType | types.MethodWrapperType):
            yield from (value.__name__, self.digest(getattr(value, "__func__", None)), self.digest(value.__self__))
        elif isinstance(value, _DESCRIPTORS):
            yield from (value.__name__, self.digest(value.__objclass__))
        elif isinstance(value, staticmethod | classmethod | functools._lru_cache_wrapper):
            yield self.digest(value.__wrapped__)
        elif isinstance(value, property):
            yield from map(self.digest, (value.fget, value.fset, value.fdel))
        else:
            yield from self._object(value)

    def _code(self, code: types.CodeType) -> Iterator[str | bytes]:
        yield from (code.co_code, getattr(code, "co_exceptiontable", b""))
        yield f"{code.co_argcount} {code.co_posonlyargcount} {code.co_kwonlyargcount} {code.co_flags}"
        for names in (code.co_names, code.co_varnames, code.co_freevars):
            yield " ".join(names)
        yield from map(self.digest, code.co_consts)

    def _function(self, function: types.FunctionType) -> Iterator[str | bytes]:
        if (version := getattr(function, "shardkit_version", None)) is not None:
            yield f"version {version}"
            return
        yield from map(self.digest, (function.__defaults__, function.__kwdefaults__, function.__closure__))
        if library := _library(function.__globals__.get("__name__")):
            yield from (library, function.__qualname__)
            return
        yield from (self.digest(function.__code__), self.digest(vars(function)))
        names, modules, attributes = _names_in(function.__code__, function.__globals__.get("__package__"))
        used = {name: function.__globals__[name] for name in names if name in function.__globals__}
        used |= {f"import {name}": module for name, module in modules.items()}
        yield from self._named(used, attributes)

    def _named(self, values: dict[str, Any], attributes: frozenset[str]) -> Iterator[str | bytes]:
        """`values`, by name. Of a module only the `attributes` count, which is what the code may ask of it."""
        for name in sorted(values.keys() - _OF_THIS_MACHINE):
            yield name
            if isinstance(values[name], types.ModuleType):
                yield from self._module(values[name], attributes)
            else:
                yield self.digest(values[name])

    def _module(self, module: types.ModuleType, attributes: frozenset[str]) -> Iterator[str | bytes]:
        yield module.__name__
        if library := _library(module.__name__):
            yield library
        elif attributes and -id(module) not in self._depth:
            self._depth[-id(module)] = 0  # modules may name each other
            yield from self._named({n: v for n, v in vars(module).items() if n in attributes}, attributes)
            del self._depth[-id(module)]

    def _class(self, kind: type) -> Iterator[str | bytes]:
        yield kind.__qualname__
        if library := _library(kind.__module__):
            yield f"{library} {kind.__module__}"
            return
        yield from map(self.digest, (type(kind), kind.__bases__))
        for name, value in vars(kind).items():
            if name not in _DERIVED:
                yield from (name, self.digest(value))

    def _object(self, value: Any) -> Iterator[str | bytes]:
        """An object of any other class: what would be pickled of it."""
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            reduced = value.__reduce_ex__(4) if reduce is None else reduce(value)
        except Exception as error:
            raise _Undescribed(f"a {type(value).__qualname__}, whose content cannot be told ({error})") from error
        if isinstance(reduced, str):  # the name of a global
            yield from (reduced, str(getattr(value, "__module__", "")))
            return
        for part in reduced:  # the last ones are iterators over items
            yield self.digest(list(part) if isinstance(part, Iterator) else part)


def _atom(value: Any) -> Iterator[str | bytes]:
    yield type(value).__name__
    if isinstance(value, str | bytes):
        yield value
    else:
        yield hex(value) if type(value) is int else repr(value)  # the decimals of a long one are refused


def _hash(parts: Any) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


def _names_in(
    code: types.CodeType, package: str | None
) -> tuple[set[str], dict[str, types.ModuleType | None], frozenset[str]]:
    """Of a function's code and the functions in it: the globals that it reads, the modules that it imports, and all
    names that it asks of anything."""
    names: set[str] = set()
    modules: dict[str, types.ModuleType | None] = {}
    attributes = set(code.co_names)
    before: list[Any] = [None, None]
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
            names.add(instruction.argval)
        elif instruction.opname == "IMPORT_NAME":
            level = before[0] if isinstance(before[0], int) else 0  # `import` takes it from the stack, below its names
            modules |= _imported("." * level + instruction.argval, package)
        before = [before[1], instruction.argval]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            more_names, more_modules, more_attributes = _names_in(constant, package)
            names, modules, attributes = names | more_names, modules | more_modules, attributes | more_attributes
    return names, modules, frozenset(attributes)


def _imported(name: str, package: str | None) -> dict[str, types.ModuleType | None]:
    """The module that an `import` inside a function loads. One that is installed is not loaded to find that out."""
    try:
        full = importlib.util.resolve_name(name, package or None)
        if _library(full):
            return {f"{full} {_library(full)}": None}
        return {part: importlib.import_module(part) for part in (full, full.partition(".")[0])}
    except Exception:  # noqa: BLE001 (the function will say so itself)
        return {name: None}


@functools.lru_cache(maxsize=1024)
def _library(module: str | None) -> str | None:
    """Name and version of the installed package that `module` is of; None if it is the caller's own."""
    top = (module or "__main__").partition(".")[0]
    if top == "__main__":
        return None
    loaded = sys.modules.get(top)
    file = getattr(loaded, "__file__", None)
    if loaded is None and (spec := importlib.util.find_spec(top)) is not None and spec.has_location:
        file = spec.origin
    if file is None:
        return top if top in sys.stdlib_module_names else None
    if {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts):
        return top if Path(file).is_relative_to(sysconfig.get_path("stdlib")) else None
    try:
        return f"{top} {importlib.metadata.version(top)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{top} {getattr(loaded, '__version__', '')}"
