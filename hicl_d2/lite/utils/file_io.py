"""Files and URLs behind one path manager."""

from typing import IO, Any

from iopath.common.file_io import HTTPURLHandler, PathHandler
from iopath.common.file_io import PathManager as _PathManager

__all__ = ["PathManager"]


class Detectron2Handler(PathHandler):
    """Resolve ``detectron2://`` to the address where Detectron2's model zoo is hosted."""

    PREFIX = "detectron2://"
    ADDRESS = "https://dl.fbaipublicfiles.com/detectron2/"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return PathManager.get_local_path(self._address(path), force=force, **kwargs)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[str] | IO[bytes]:
        return PathManager.open(self._address(path), mode, buffering=buffering, **kwargs)

    def _address(self, path: str) -> str:
        return self.ADDRESS + path.removeprefix(self.PREFIX)


PathManager = _PathManager()
PathManager.register_handler(HTTPURLHandler())
PathManager.register_handler(Detectron2Handler())
