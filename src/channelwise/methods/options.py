"""How the parameters of methods are validated when a recipe names them."""

from pydantic import ConfigDict

OPTIONS = ConfigDict(extra="forbid", strict=True)
"""Unknown keys and wrong types are errors."""
