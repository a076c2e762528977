"""Sphinx builds the site from here: `make docs`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from kbnet_plugin import __version__

project = "kbnet"
author = "The kbnet developers"
project_copyright = author
release = __version__

extensions = ["myst_nb", "numpydoc", "sphinx.ext.autodoc", "tools.docs_pages"]
exclude_patterns = ["_static"]

html_theme = "furo"
html_title = f"kbnet {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
smartquotes = False  # it would turn --option into a dash
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_output_stderr = "remove"

default_role = "code"
autodoc_member_order = "bysource"
# The docstrings name the types, in words that people read.
autodoc_typehints = "none"
numpydoc_show_class_members = False
nitpick_ignore = [("py:class", "collections.abc.Callable")]
