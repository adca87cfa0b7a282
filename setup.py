"""Map the top-level folders of the repository onto the package `revgrad`.

Everything else that packaging needs stands in pyproject.toml.
"""

from setuptools import find_packages, setup

FOLDERS = {"revgrad": "revgrad", "revgrad.models": "models", "revgrad.benchmarks": "benchmarks"}


def packages_under(package: str, folder: str) -> list[str]:
    """List a package and every regular package found below its folder."""
    return [package, *(f"{package}.{name}" for name in find_packages(folder))]


setup(
    package_dir=FOLDERS,
    packages=[name for item in FOLDERS.items() for name in packages_under(*item)],
    package_data={
        "revgrad": ["py.typed"],
        "revgrad.models": ["**/*.npz", "**/*.json", "**/*.md"],
    },
)
