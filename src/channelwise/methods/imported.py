"""Methods from outside the package, by import path: `package.module:Class`."""

import dataclasses
import hashlib
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import PydanticSchemaGenerationError
from pydantic.dataclasses import dataclass as checked_dataclass
from pydantic.dataclasses import is_pydantic_dataclass

from channelwise.methods.options import OPTIONS
from channelwise.methods.site import Method


def is_import_path(name: str) -> bool:
    """Whether a method's name leads outside the package."""
    return ":" in name


def imported_method(path: str, options: Mapping[str, Any]) -> Method:
    """The method at `package.module:Class` with these options, which its fields check as they do for our own.

    A class from outside is a frozen dataclass, of the standard library or of pydantic, with `choose(site) -> Choice`.
    The module is imported as `import` would: it is installed, or its folder is on PYTHONPATH.

    Raises ValueError (pydantic's too) for a path that leads nowhere, a class that is no method, and unfit options.
    """
    found = _class_at(path)
    known = [field.name for field in dataclasses.fields(found) if field.init]
    if unknown := [name for name in options if name not in known]:
        raise ValueError(f"{path} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    try:
        checked = found if is_pydantic_dataclass(found) else checked_dataclass(found, frozen=True, config=OPTIONS)
    except PydanticSchemaGenerationError as error:
        raise ValueError(f"{path}: an option has a type that YAML cannot say; use numbers, strings, Literal") from error
    method: Any = checked(**options)
    if checked is found:
        return method
    # Pydantic checked a subclass of its own making; what the engine gets is the class as it was written.
    return found(**{name: getattr(method, name) for name in known})


def method_digest(path: str) -> str:
    """Of the file that holds the class, to tell two versions of it apart; of nothing where there is no file.

    Raises ValueError as `imported_method` does.
    """
    file = getattr(sys.modules[_class_at(path).__module__], "__file__", None)
    return hashlib.sha256(Path(file).read_bytes() if file is not None and Path(file).is_file() else b"").hexdigest()


def _class_at(path: str) -> Any:
    """The class, proven to be a method's."""
    module_name, _, class_name = path.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), class_name]):
        raise ValueError(f"{path!r} is no import path; give package.module:Class")
    found = getattr(_module(module_name, path), class_name, None)
    if found is None:
        raise ValueError(f"{path}: the module {module_name} has no {class_name}")
    if not isinstance(found, type) or not callable(getattr(found, "choose", None)):
        raise ValueError(f"{path} is no method: give a class with choose(site) -> Choice")
    if not dataclasses.is_dataclass(found) or not found.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ValueError(f"{path} is no method: make it a frozen dataclass, whose fields are its options")
    return found


def _module(name: str, path: str) -> Any:
    """The module. Raises ValueError, with whatever went wrong inside it, if it cannot be imported."""
    try:
        return import_module(name)
    except (Exception, SystemExit) as error:  # the module is anybody's, and so is what it raises
        missing = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
        advice = "install it, or set PYTHONPATH to the folder it is in" if missing else "mend it"
        raise ValueError(f"{path}: cannot import {name}: {type(error).__name__}: {error}; {advice}") from error
