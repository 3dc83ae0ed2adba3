"""Configuration of Sphinx."""

import skpatchcore

project = "skpatchcore"
author = "The skpatchcore developers"
copyright = f"2026, {author}"
version = release = skpatchcore.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
]
exclude_patterns = ["_build"]
html_theme = "furo"
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
autosummary_generate = True
# Members are listed by autosummary; numpydoc would list them again.
numpydoc_show_class_members = False
autodoc_default_options = {
    "members": True,
    "inherited-members": False,
    # Made by scikit-learn, whose texts refer to its own glossary.
    "exclude-members": "set_split_request, set_fit_request, set_score_request",
}
