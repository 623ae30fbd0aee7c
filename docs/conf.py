"""Sphinx configuration; `make docs` builds the pages into docs/_build/html."""

from importlib.metadata import version

project = "steepest"
author = "The steepest developers"
copyright = "2026, the steepest developers"
release = version("steepest")

extensions = [
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.intersphinx",
    "sphinx_design",
    "sphinxcontrib.bibtex",
]
bibtex_bibfiles = ["../src/steepest/references.bib"]
numpydoc_show_class_members = False
autosummary_generate = True
autodoc_typehints = "none"
default_role = "any"
exclude_patterns = ["_build"]

html_theme = "pydata_sphinx_theme"
html_title = "steepest"
