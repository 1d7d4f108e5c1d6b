"""The global registries of data sets: records by name, and metadata by name."""

from collections import UserDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from hicl_d2.command.errors import listing, nearest

Records = list[dict[str, Any]]


class _Catalog(UserDict[str, Any]):
    def list(self) -> list[str]:
        """Return all registered names."""
        return list(self.data)

    def remove(self, name: str) -> None:
        """Unregister ``name``; raise KeyError if it is not registered."""
        self.pop(name)


class _DatasetCatalog(_Catalog):
    """Functions that return the records of a data set, by its name."""

    def register(self, name: str, func: Callable[[], Records]) -> None:
        """Register ``func``, which must return the same records at every call; AssertionError for a name in use."""
        assert callable(func), f"a data set is registered with a function, not with a {type(func).__name__}"
        assert name not in self, f"the data set '{name}' is already registered"
        self[name] = func

    def get(self, name: str) -> Records:  # type: ignore[override] # as in Detectron2, this is not dict.get
        """Call the function of ``name`` and return its records; raise KeyError for a name not registered."""
        if name not in self:
            known = f"{nearest(name, self)}; registered: {listing(self)}"
            raise KeyError(f"the data set '{name}' is not registered{known}")
        return self[name]()


class Metadata(SimpleNamespace):
    """Metadata of one data set; changing an attribute that is set raises AssertionError."""

    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:
        known = ", ".join(sorted(self.__dict__))
        raise AttributeError(f"the metadata of '{self.name}' has no '{key}'; it has {known or 'nothing'}")

    def __setattr__(self, key: str, value: Any) -> None:
        old = self.__dict__.setdefault(key, value)
        assert old == value, (
            f"'{key}' of the metadata of '{self.name}' is {old!r} and cannot become {value!r}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return a copy of all attributes as a dictionary."""
        return dict(self.__dict__)

    def set(self, **attributes: Any) -> "Metadata":
        """Set several attributes and return the metadata itself."""
        for key, value in attributes.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """Return the attribute ``key``, or ``default`` where there is none."""
        return self.__dict__.get(key, default)


class _MetadataCatalog(_Catalog):
    """Metadata by data set name, created empty at the first access."""

    def get(self, name: str) -> Metadata:  # type: ignore[override]
        """Return the one Metadata of ``name``, the same object at every call."""
        assert name, "metadata belong to a data set's name, and this one is empty"
        return self.setdefault(name, Metadata(name=name))


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
