"""Map the repository's top-level folders onto the package `revgrad`, and build its kernels.

Everything else that packaging needs stands in pyproject.toml. csrc/build_kernels.py builds the
kernels. Where it cannot, revgrad installs without them and says so when they are first missed;
REVGRAD_KERNELS=1 makes that an error, REVGRAD_KERNELS=0 leaves them out.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

# A build front end need not put this folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent / "csrc"))
import build_kernels as kernels

FOLDERS = {"revgrad": "revgrad", "revgrad.models": "models", "revgrad.benchmarks": "benchmarks"}
REQUIRED = os.environ.get("REVGRAD_KERNELS") == "1"


def packages_under(package: str, folder: str) -> list[str]:
    """List a package and every regular package found below its folder."""
    return [package, *(f"{package}.{name}" for name in find_packages(folder))]


class BuildKernels(build_ext):
    """Hands the one extension to csrc/build_kernels.py."""

    def get_ext_filename(self, fullname: str) -> str:
        """No Python symbols are inside, so the name carries no Python version."""
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        try:
            kernels.library(Path(self.get_ext_fullpath(ext.name)).resolve())
        except RuntimeError as error:
            if REQUIRED:
                raise
            print(f"revgrad: installing without kernels; {error}", file=sys.stderr)


class AnyPythonWheel(bdist_wheel):
    """A wheel with kernels fits every Python 3 beside this machine's glibc or a newer one."""

    def get_tag(self) -> tuple[str, str, str]:
        tag = super().get_tag()
        return tag if self.root_is_pure else ("py3", "none", _manylinux(tag[2]))


def _manylinux(tag: str) -> str:
    """The platform as package indexes take it (PEP 600)."""
    name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    if name != "glibc" or not tag.startswith("linux_"):
        return tag
    return tag.replace("linux", f"manylinux_{version.replace('.', '_')}", 1)


problem = kernels.obstacle()
if problem and REQUIRED:
    sys.exit(f"revgrad: the kernels cannot be built: {problem}")
if problem:
    print(f"revgrad: installing without kernels: {problem}", file=sys.stderr)

setup(
    package_dir=FOLDERS,
    packages=[name for item in FOLDERS.items() for name in packages_under(*item)],
    package_data={
        "revgrad": ["py.typed"],
        "revgrad.models": ["**/*.npz", "**/*.json", "**/*.md"],
    },
    ext_modules=[] if problem else [Extension("revgrad._C", [], optional=not REQUIRED)],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": AnyPythonWheel},
)
