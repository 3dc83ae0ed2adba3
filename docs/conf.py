"""Configuration of Sphinx."""

import os
import re
import sys
import tempfile
import tomllib
import zlib
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))
# The gallery draws procedural images only: those of MVTec AD have a licence of their
# own, and the number of real images would decide how long a build takes.
os.environ["SKPATCHCORE_DATA"] = os.devnull

import skpatchcore  # noqa: E402

_PYPROJECT = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))
_URLS = _PYPROJECT["project"]["urls"]
project = "skpatchcore"
author = "The skpatchcore developers"
copyright = f"2026, {author}"
version = release = skpatchcore.__version__

extensions = [
    "mathml",
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "sphinx_click",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
# Every cross-reference must lead somewhere.
nitpicky = True
# As in scikit-learn's docstrings: `X` is code.
default_role = "literal"

# Markdown
myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 4

# API
autosummary_generate = True
# Members are listed by autosummary; numpydoc would list them again.
numpydoc_show_class_members = False
autodoc_typehints = "none"
toc_object_entries_show_parents = "hide"
autodoc_default_options = {
    "members": True,
    # Made by scikit-learn, whose texts refer to its own glossary.
    "exclude-members": "get_metadata_routing, set_split_request, set_fit_request, "
    "set_score_request",
}

# Other projects
# -------------
# A build needs no network: instead of the inventories that other projects publish, the
# few entries that are referred to are kept here, in the format of those inventories
# before it is compressed.
PROJECTS = {
    "matplotlib": "https://matplotlib.org/stable/",
    "joblib": "https://joblib.readthedocs.io/en/stable/",
    "sklearn": "https://scikit-learn.org/stable/",
}


def compress_inventory(source: Path, folder: Path) -> str:
    """Write the entries in `source` as an inventory that intersphinx reads."""
    header = (
        f"# Sphinx inventory version 2\n# Project: {source.stem}\n# Version: \n"
        "# The remainder of this file is compressed using zlib.\n"
    )
    path = folder / f"{source.stem}.inv"
    path.write_bytes(header.encode() + zlib.compress(source.read_bytes()))
    return str(path)


_folder = Path(tempfile.mkdtemp(prefix="skpatchcore-docs-"))
intersphinx_mapping = {
    name: (url, compress_inventory(HERE / "intersphinx" / f"{name}.txt", _folder))
    for name, url in PROJECTS.items()
}

# Gallery
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "backreferences_dir": "api/backreferences",
    "doc_module": ("skpatchcore",),
    "reference_url": {"skpatchcore": None},
    "abort_on_example_error": True,
    # What a display is called says less than its figure.
    "capture_repr": ("_repr_html_",),
    "within_subsection_order": "FileNameSortKey",
    "remove_config_comments": True,
    "show_memory": False,
    "download_all_examples": False,
    # That page would load scripts from elsewhere.
    "write_computation_times": False,
}

# Pages
html_theme = "pydata_sphinx_theme"
html_title = "skpatchcore"
html_static_path = ["_static"]
html_css_files = ["skpatchcore.css"]
html_logo = html_favicon = "_static/logo.svg"
html_show_sourcelink = False
html_context = {"default_mode": "auto"}
html_theme_options = {
    "logo": {"text": "skpatchcore"},
    "github_url": _URLS["Source"],
    "external_links": [{"name": "Issues", "url": _URLS["Issues"]}],
    "header_links_before_dropdown": 5,
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "tango",
    "pygments_dark_style": "monokai",
}
# Pages at the top have no section of their own to navigate, except these.
_STARTING = ("getting_started", "first_hour", "installation", "troubleshooting", "faq")
html_sidebars = {"*": []} | {page: ["sidebar-nav-bs"] for page in _STARTING}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def tidy_options(app, context, lines):
    """Put defaults in a line each, and keep patterns from being read as emphasis."""
    lines[:] = [
        re.sub(
            r"(?<=[ '])\*(?=[._])",
            r"\*",
            re.sub(r":default: ``'?(.*?)'?``$", r"Default: ``\1``.", line),
        )
        for line in lines
        if "Sentinel.UNSET" not in line
    ]


def setup(app):
    app.connect("sphinx-click-process-options", tidy_options)
