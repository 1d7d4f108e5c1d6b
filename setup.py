"""Builds the package as setup.cfg describes it, and puts what lies beside hicl_d2/ in a checkout into it.

An installed package has configs/, benchmark/ (matrices, published figures, expected results) and projects/ (the scripts)
inside hicl_d2/, as hicl_d2/command/shipped.py looks for them. In a checkout, an editable install included, they stay where
they are and nothing is copied.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = (
    "configs/**/*.yaml",
    "benchmark/matrices/*.yaml",
    "benchmark/reference.csv",
    "benchmark/expected.yaml",
    "projects/HiCL/*.py",
)


class BuildWithShipped(build_py):
    """Copy the modules, and then the files of SHIPPED below hicl_d2/."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for source, target in self._shipped():
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *(str(target) for _, target in self._shipped())]

    def _shipped(self) -> list[tuple[Path, Path]]:
        package = Path(self.build_lib) / "hicl_d2"
        files = (path for pattern in SHIPPED for path in sorted(Path().glob(pattern)))
        return [(path, package / path) for path in files]


setup(cmdclass={"build_py": BuildWithShipped})
