"""The site of the documentation: the notebooks as a course, and what they define.

Notebooks are not executed, and nothing is fetched from the network.
"""

import re
import sys
from pathlib import Path

import latex2mathml.converter

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

project, author, html_title = "ZeroModel", "ZeroModel Authors", "ZeroModel"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.apidoc"]
root_doc = "docs/index"
# pages of reports are linked from the results and are in no list of contents
include_patterns = ["docs/**", "nbs/**", "*.md", "reports/**/*.md"]
suppress_warnings = ["toc.not_included"]
exclude_patterns = ["nbs/index.ipynb", "**/.ipynb_checkpoints"]  # the index is README.md
html_theme, html_copy_source, html_show_sphinx = "furo", False, False
nb_execution_mode = "off"
myst_enable_extensions, myst_heading_anchors = ["dollarmath"], 3
apidoc_modules = [
    {
        "path": "../zeromodel",
        "destination": "docs/api",
        "separate_modules": True,
        "exclude_patterns": ["../zeromodel/_modidx.py"],
    }
]
autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource"}
autodoc_typehints = "none"


PARTS = {
    "1_tasks": "1 Tasks",
    "2_model": "2 Model",
    "3_training": "3 Training",
    "4_evaluation": "4 Evaluation",
    "5_study": "5 Study",
    "analysis": "Figures of the report",
}


def notebooks(folder: Path, pattern: str = "**/*.ipynb") -> list[str]:
    """Names of the notebooks in `folder`, relative to the root and without suffix, sorted."""
    found = sorted(folder.glob(pattern))
    return [
        path.relative_to(ROOT).with_suffix("").as_posix()
        for path in found
        if ".ipynb_checkpoints" not in path.parts
    ]


def toctree(caption: str, names: list[str]) -> str:
    """A list of pages with a caption."""
    pages = "\n".join(f"/{name}" for name in names)
    return f"```{{toctree}}\n:maxdepth: 1\n:caption: {caption}\n\n{pages}\n```\n"


def course() -> str:
    """The notebooks by folder, in the order of their numbers."""
    nbs = ROOT / "nbs"
    top = [name for name in notebooks(nbs, "*.ipynb") if name != "nbs/index"]
    tour = [name for name in top if name == "nbs/00_tour"]
    rest = [name for name in top if name != "nbs/00_tour"]
    parts = {"0 Tour": tour}
    parts |= {caption: notebooks(nbs / folder) for folder, caption in PARTS.items()}
    parts["Command, files, watching"] = rest
    return "\n".join(toctree(caption, names) for caption, names in parts.items() if names)


def fill_in(app, docname, source):
    """Put the course in the place of the word COURSE."""
    if docname == root_doc:
        source[0] = source[0].replace("COURSE", course())


def as_rst(app, what, name, obj, options, lines):
    """Turn the Markdown of docstrings (code in backticks, links) into reStructuredText."""
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", "\n".join(lines))
    pieces = re.split(r"`+([^`]+)`+", text)
    lines[:] = "".join(
        f"\\ ``{piece}``\\ " if i % 2 else re.sub(r"([*|_\\])", r"\\\1", piece)
        for i, piece in enumerate(pieces)
    ).splitlines()


def as_mathml(writer, node, display: str):
    """Write a formula as MathML, which browsers show without a script."""
    from docutils.nodes import SkipNode

    writer.body.append(latex2mathml.converter.convert(node.astext(), display=display))
    raise SkipNode


def setup(app):
    app.connect("source-read", fill_in)
    app.connect("autodoc-process-docstring", as_rst)
    app.add_html_math_renderer(
        "mathml",
        (lambda w, n: as_mathml(w, n, "inline"), None),
        (lambda w, n: as_mathml(w, n, "block"), None),
    )


html_math_renderer = "mathml"
