"""How Sphinx builds these pages: `sphinx-build -W -b html docs build/docs`."""

import os
import sys

sys.path.insert(0, os.path.abspath(".."))
sys.path.insert(0, os.path.abspath("_ext"))
sys.path.insert(0, os.path.abspath("../.ci"))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import filterprune

project = "filterprune"
author = "the filterprune contributors"
copyright = author
release = version = filterprune.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "keras_docstrings",
    "page_links",
]
exclude_patterns = ["_ext"]
html_theme = "furo"
html_title = f"filterprune {release}"
html_show_copyright = False
html_copy_source = False
pygments_style = "friendly"

autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Reference", "notes_style")]
napoleon_use_ivar = True
napoleon_use_rtype = False

# `sphinx-build -b doctest` runs the blocks of pages whose output is shown; the others,
# and the examples of docstrings, are run by `.ci/check_docs.py`.
doctest_test_doctest_blocks = ""
doctest_global_setup = """
import os, tempfile
from check_docs import example_names
globals().update(example_names())
home, folder = os.getcwd(), tempfile.TemporaryDirectory()
os.chdir(folder.name)
"""
doctest_global_cleanup = """
os.chdir(home)
folder.cleanup()
"""
