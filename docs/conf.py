"""How the documentation is built; the command is in the README, under its own heading."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import sphinx_autosummary_accessors

import dask_consensus  # registers the accessor, which is documented

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE / "_extensions"))
# Pages share what they compile, and leave nothing behind elsewhere.
os.environ.setdefault("DASK_CONSENSUS__CACHE", str(HERE / "_build" / "compiled"))

project = "dask_consensus"
author = "The dask_consensus developers"
copyright = "the dask_consensus developers"
version = release = dask_consensus.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_nb",
    "sphinx_autosummary_accessors",
    "mathml",
    "options_tables",
]
templates_path = ["_templates", sphinx_autosummary_accessors.templates_path]
exclude_patterns = ["_build", "_examples", "_extensions", "_templates"]

html_theme = "sphinx_book_theme"
html_title = "dask_consensus"
html_math_renderer = "mathml"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_theme_options = {"show_toc_level": 2, "use_download_button": False}

# Pages are executed once for each of their versions; notebooks show what their authors ran.
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / "executed")
nb_execution_excludepatterns = ["notebooks/*"]
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_show_tb = True
nb_merge_streams = True
# Progress bars of libraries; a warning that matters is printed by a page.
nb_output_stderr = "remove"

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_update_mathjax = False

autosummary_generate = True
toc_object_entries = False
autodoc_typehints = "none"
numpydoc_show_class_members = False


def copy_notebooks(app: Sphinx) -> None:
    """Put the notebooks of the repository where pages are."""
    target = HERE / "notebooks"
    target.mkdir(exist_ok=True)
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        shutil.copy2(notebook, target / notebook.name)


def setup(app: Sphinx) -> None:
    """Connect what happens before pages are read."""
    app.connect("builder-inited", copy_notebooks)
