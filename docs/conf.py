"""How the documentation site is built: `make docs`.

Its sources are the whole checkout, so that pages can link to measurements and examples, and its
front page is the README, to which the table of contents is added here.
"""

from pathlib import Path

from sphinx.application import Sphinx

from revgrad import __version__

project = "revgrad"
release = __version__
copyright = "the revgrad maintainers"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
root_doc = "README"
include_patterns = ["README.md", "docs/**", "benchmarks/results/*.md", "models/data/samples/*.md"]
suppress_warnings = ["toc.not_included"]  # measurements are reached from the pages that quote them

html_theme = "furo"
html_title = f"revgrad {release}"

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

# Docstrings put code between single backticks, and shapes into a section of their own.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shapes"]
napoleon_use_ivar = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
# What torch.nn.Module documents itself is not repeated for each layer.
autodoc_inherit_docstrings = False


def add_contents(app: Sphinx, name: str, source: list[str]) -> None:
    """Give the front page the table of contents, which a reader of the README need not see."""
    if name == root_doc:
        source[0] += "\n" + Path(__file__).with_name("contents.txt").read_text(encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add_contents)
