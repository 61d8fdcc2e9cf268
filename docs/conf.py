"""The site of the documentation: the notebooks in the order of the course, and what they define.

Nothing is executed, nothing is fetched.
"""

import json
import re
import sys
from pathlib import Path

import latex2mathml.converter

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

project, author, html_title = "ZeroModel", "ZeroModel Authors", "ZeroModel"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.apidoc"]
root_doc = "docs/index"
include_patterns = ["docs/**", "nbs/**", "*.md"]
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


def course() -> str:
    """The table of the README as lists of notebooks, a caption for each part."""
    text, part, parts = (
        "".join(
            line
            for cell in json.loads((ROOT / "nbs/index.ipynb").read_text())["cells"]
            for line in (*cell["source"], "\n")
        ),
        "",
        {},
    )
    for line in text.split("\n## The course\n")[1].split("\n## ")[0].splitlines():
        if not (links := re.findall(r"\((nbs/\S+)\.ipynb\)", line)):
            continue
        part = line.split("|")[1].strip() or part
        parts.setdefault(part, []).extend(links)
    listed = {link for links in parts.values() for link in links} | {"nbs/index"}
    parts["beside the course"] = sorted(
        name
        for p in (ROOT / "nbs").rglob("*.ipynb")
        if (name := p.relative_to(ROOT).with_suffix("").as_posix()) not in listed
        and ".ipynb_checkpoints" not in name
    )
    return "\n".join(
        "\n".join(
            [
                "```{toctree}",
                ":maxdepth: 1",
                f":caption: {part}",
                "",
                *(f"/{link}" for link in links),
                "```",
                "",
            ]
        )
        for part, links in parts.items()
        if links
    )


def fill_in(app, docname, source):
    """The course, in the place of its name."""
    if docname == root_doc:
        source[0] = source[0].replace("COURSE", course())


def as_rst(app, what, name, obj, options, lines):
    """Docstrings are Markdown: code in single backticks, links in brackets, stars that mean
    nothing.
    """
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", "\n".join(lines))
    pieces = re.split(r"`+([^`]+)`+", text)
    lines[:] = "".join(
        f"\\ ``{piece}``\\ " if i % 2 else re.sub(r"([*|_\\])", r"\\\1", piece)
        for i, piece in enumerate(pieces)
    ).splitlines()


def as_mathml(writer, node, display: str):
    """Browsers set MathML themselves: no script."""
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
