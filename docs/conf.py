"""Sphinx configuration; `make docs` builds the pages into docs/_build/html."""

import re
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


def escape_docstring(app, what, name, obj, options, lines):
    """Let ``(n, *shape)``, ``|x|`` and ``mean_`` of prose mean what they say, not marks of reStructuredText.

    References into scikit-learn's own pages, in what its bases hand down, become their words.
    """
    section, literal = "", None
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if i and line and set(line.strip()) == {"-"}:
            section = lines[i - 1].strip()
        if literal is not None and line.strip() and indent <= literal:
            literal = None
        if section != "Examples" and literal is None and not line.lstrip().startswith(">>>"):
            parts = re.split(r"(``.*?``|`.*?`)", re.sub(r":ref:`([^<`]+) <[^`]+>`", r"\1", line))
            lines[i] = "".join(part if k % 2 else MARKS.sub(r"\\\g<0>", part) for k, part in enumerate(parts))
        if literal is None and line.rstrip().endswith("::"):
            literal = indent


MARKS = re.compile(r"(?<=[(,\s])\*(?=\w+[,)\]\s])|\||(?<=\w)_(?=[^\w`]|$)")


def setup(app):
    app.connect("autodoc-process-docstring", escape_docstring, priority=400)


html_theme = "pydata_sphinx_theme"
html_title = "steepest"
html_static_path = ["_static"]
html_css_files = ["docs.css"]
html_sidebars = {"**": ["globaltoc.html"]}
html_theme_options = {"navbar_center": [], "show_prev_next": False, "secondary_sidebar_items": ["page-toc"]}
