"""Links between pages by the names of their files lead to the built pages.

So `choosing.rst <choosing.rst>`_ works where the sources are read, too.
"""

import posixpath

from docutils import nodes
from sphinx.util import logging

_LOGGER = logging.getLogger(__name__)


def _resolve(app, doctree, docname):
    for reference in doctree.findall(nodes.reference):
        path, _, part = reference.get("refuri", "").partition("#")
        if not path.endswith(".rst") or "://" in path:
            continue
        target = posixpath.normpath(
            posixpath.join(posixpath.dirname(docname), path.removesuffix(".rst"))
        )
        if target not in app.env.found_docs:
            _LOGGER.warning("the link to %s leads to no page", path, location=docname)
            continue
        uri = app.builder.get_relative_uri(docname, target)
        reference["refuri"] = uri + (f"#{part}" if part else "")
        reference["internal"] = True
        title = app.env.titles[target].astext()
        if reference.astext() == path:
            reference.children = [nodes.Text(title)]


def setup(app):
    """Once all pages are read."""
    app.connect("doctree-resolved", _resolve)
    return {"parallel_read_safe": True}
