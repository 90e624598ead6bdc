"""Find classes by name: built-in ones, those registered by installed packages, and `package.module:Class`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar, get_type_hints

from .errors import ArgumentError, did_you_mean, quoted


T = TypeVar("T")


def find_class(name: str, built_in: Mapping[str, str], base: type[T], what: str) -> type[T]:
    """Import the class that a recipe names.

    `built_in`: name → "module:Class". Other names are looked up in the entry points `magpie_hf.{what}s` of installed
    packages; a name with a colon is "module:Class" itself. Only subclasses of `base` are returned.

    Raises:
        ArgumentError: the name is unknown, its module cannot be imported, or it is not a usable class.
    """
    address = built_in.get(name) or (name if ":" in name else _registered(what).get(name))
    if address is None:
        names = [*built_in, *_registered(what)]
        hint = f"{did_you_mean(name, names)} To use your own class, write package.module:Class."
        raise ArgumentError(f"Unknown {what} {quoted(name)}.", hint=hint, key=what)
    found = _imported(address, what)
    if not inspect.isclass(found) or not issubclass(found, base):
        raise ArgumentError(
            f"{quoted(address)} is not a subclass of {base.__module__}.{base.__name__}.", hint=_GUIDE[what], key=what
        )
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise ArgumentError(f"{quoted(address)} does not define {', '.join(missing)}.", hint=_GUIDE[what], key=what)
    own = str(getattr(found, "name", ""))
    if name not in built_in and own in built_in and built_in[own] != address:
        hint = "Finished rows are found by this name: choose a unique one."
        raise ArgumentError(
            f"{quoted(address)} has the name of a built-in {what}, {quoted(own)}.", hint=hint, key=what
        )
    return found


_GUIDE = {
    what: f"See docs/how-to/write-{'an' if what == 'engine' else 'a'}-{what}.md." for what in ("stage", "engine")
}


def _registered(what: str) -> dict[str, str]:
    """Return the entry points of installed packages: name → "module:Class"."""
    return {point.name: point.value for point in entry_points(group=f"magpie_hf.{what}s")}


def _imported(address: str, what: str) -> object:
    module, _, attribute = address.partition(":")
    try:
        if not all(part.isidentifier() for part in (*module.split("."), attribute)):
            raise ModuleNotFoundError("it is not of the form module:Class", name=module)
        return getattr(importlib.import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        if not _is_about(error, module, attribute):
            raise  # raised by the module's own code
        raise ArgumentError(
            f"The {what} {quoted(address)} cannot be imported: {error}.",
            hint="Write it as package.module:Class; the package must be installed, or its folder be in PYTHONPATH.",
            key=what,
        ) from None


def _is_about(error: Exception, module: str, attribute: str) -> bool:
    """Return whether an import failed because the module or its attribute does not exist, not due to its content."""
    if isinstance(error, ModuleNotFoundError):
        return module == error.name or module.startswith(f"{error.name}.")
    return isinstance(error, AttributeError) and error.name == attribute


def types_of(described: type | Callable[..., object]) -> dict[str, Any]:
    """Return the types of a class's fields or of a function's arguments, also with postponed annotations.

    Raises:
        ArgumentError: an annotation uses a name that the module does not define at run time.
    """
    try:
        return get_type_hints(described)
    except NameError as error:
        raise ArgumentError(
            f"The types of {described.__qualname__}'s settings cannot be read: {error}.",
            hint="Import these names outside of `if TYPE_CHECKING:`.",
        ) from None
