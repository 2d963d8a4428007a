"""How Sphinx builds the documentation: ``make docs``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

sys.path.insert(0, str(Path(__file__).parents[1]))

from lightning_explain import __version__

project = "lightning_explain"
author = "The developers of lightning_explain"
project_copyright = "the developers of lightning_explain"
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath", "colon_fence", "attrs_inline"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Cost", "Chance", "Signed", "Not for", "Further arguments"]

html_theme = "furo"
html_title = "lightning_explain"
html_static_path = ["_static"]
html_css_files = ["site.css"]
# So that the longest names of methods have space in the navigation.
html_theme_options = {"light_css_variables": {"sidebar-item-font-size": "80%"}}
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False


def _math(html: Any, node: Any, display: str) -> None:
    """Formulas as MathML, which browsers draw without a script or a network."""
    from docutils.nodes import SkipNode

    html.body.append(convert(node.astext(), display=display))
    raise SkipNode


def setup(app: Any) -> None:
    """Adds the renderer of formulas."""
    inline = (lambda html, node: _math(html, node, "inline"), None)
    app.add_html_math_renderer("mathml", inline, (lambda html, node: _math(html, node, "block"), None))
