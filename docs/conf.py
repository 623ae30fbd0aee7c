"""Sphinx configuration; `make docs` builds the pages into docs/_build/html."""

from importlib.metadata import version as installed_version

project = "steepest"
author = "The steepest developers"
copyright = "2026, the steepest developers"
release = version = installed_version("steepest")

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.intersphinx",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.bibtex",
]
bibtex_bibfiles = ["../src/steepest/references.bib"]
numpydoc_show_class_members = False
autosummary_generate = True
autodoc_typehints = "none"
default_role = "code"
exclude_patterns = ["_build", "examples/GALLERY_HEADER.rst"]
sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": "plot_",
    "abort_on_example_error": True,
    "show_memory": False,
    "matplotlib_animations": False,
    "copyfile_regex": r".*\.rst",
}
myst_enable_extensions = ["dollarmath"]

html_theme = "pydata_sphinx_theme"
html_title = "steepest"
