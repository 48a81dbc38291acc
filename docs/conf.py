"""How the site is built: ``python -m sphinx -W -n docs out/site``. Nothing is fetched, then or when it is opened."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from segaware import __version__  # noqa: E402  # the package is installed, or on PYTHONPATH

project = "segaware"
author = copyright = "The segaware authors"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "offline_math",
    "references",
    "zoo_pages",
]
exclude_patterns = ["_build", "**/README.md"]
# Pages may come and go (results are written by scripts): a pattern in a toctree may match nothing.
suppress_warnings = ["toc.empty_glob"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3  # as on GitHub: the pages are read there too

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # torch.nn.Module has a text for every forward()
add_module_names = False
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shape", "Source"]
python_maximum_signature_line_length = 88
# Names of other projects would be looked up in their inventories, on the network.
nitpick_ignore_regex = [("py:.*", r"(?!segaware\.).*")]

html_theme = "furo"
html_title = "segaware"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "offline"
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
copybutton_exclude = ".linenos, .gp"
