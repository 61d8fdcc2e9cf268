"""The tables of the report compile; skipped where there is no pdflatex."""

import shutil
import subprocess

import pandas as pd
import pytest
from conftest import ROOT

from zeromodel.study.figures import save_table

PAGE = r"\documentclass{article}\usepackage{booktabs}\begin{document}\tiny %s\end{document}"


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex")
@pytest.mark.parametrize("source", ["committed", "special characters"])
def test_tables_compile(tmp_path, source):
    if source == "special characters":
        save_table(
            pd.DataFrame(
                {
                    "run_name": ["mla_lru", "50% & more", "{a}#1", "x^2~$y$", "back\\slash"],
                    "R&D %": [1, None, 3.5, "1_000", "–"],
                }
            ),
            tmp_path,
            "special",
            "names",
        )
        tables = sorted(tmp_path.glob("*.tex"))
    else:
        tables = sorted((ROOT / "reports").glob("**/tables/*.tex"))
    assert tables
    for table in tables:
        (tmp_path / "page.tex").write_text(PAGE % table.read_text())
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            encoding="latin-1",
        )
        assert done.returncode == 0, f"{table.name}:\n{done.stdout[-1500:]}"
