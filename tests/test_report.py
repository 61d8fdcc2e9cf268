"""The report on folders in which the truth is known, and on the real one."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
from conftest import ROOT
from notebooks import execute_all
from planted import UNIT, plant

from zeromodel.study.compare import flat
from zeromodel.study.report import figures_of, write_report
from zeromodel.study.results import (
    comparisons,
    equal_accuracy,
    experiments_of,
    seeds_of,
    summarise,
)

WIDTHS = {
    "a": dict(intermediate_size=8),
    "wide": dict(intermediate_size=64),
    "wider": dict(intermediate_size=256),
    "b": UNIT,
}


@pytest.mark.parametrize(
    "control, treatment, verdict, says",
    [
        ([0.50, 0.52, 0.51], [0.80, 0.83, 0.79], "supported", "+0.297"),
        ([0.50, 0.52, 0.51], [0.20, 0.23, 0.19], "not supported", "-0.303"),
        # no effect, and narrow enough to say so
        ([0.50, 0.52, 0.51], [0.505, 0.515, 0.51], "not supported", "+0.000"),
        ([0.50, 0.52, 0.51], [0.50, 0.52, 0.51], "not supported", "+0.000"),  # exactly the same
        ([0.50, 0.90, 0.20], [0.80, 0.40, 0.70], "underpowered", "four times out of five"),
        ([0.50, 0.52, 0.51, "failed"], [0.80, 0.83, 0.79, 0.80], "supported", "3 seeds, 1 dropped"),
        (
            [0.50, 0.52, 0.51, 0.50],
            [0.80, "missing", 0.79, 0.82],
            "supported",
            "3 seeds, 1 dropped",
        ),
        ([0.50, 0.52, "failed"], [0.80, 0.83, 0.79], "underpowered", "no test"),
        (["failed"] * 3, [0.80, 0.83, 0.79], "underpowered", "no finished seed in common"),
        (["missing"] * 3, ["missing"] * 3, "underpowered", "no finished seed in common"),
    ],
)
def test_verdict_follows_from_the_numbers(tmp_path, control, treatment, verdict, says):
    report = plant(tmp_path / "r", {"a": control, "b": treatment}, {"b": UNIT})
    s, page = write_report(report), (report / "index.html").read_text()
    assert s["verdict"] == verdict and f"<b>{verdict}</b>" in page and says in page
    for name, values in (("a", control), ("b", treatment)):
        row = s["experiments"][name]
        assert (row["failed"], row["missing"], row["seeds"]) == (
            values.count("failed"),
            values.count("missing"),
            sum(isinstance(v, float) for v in values),
        )
    assert ("failed: the loss is nan at step 7" in page) == ("failed" in control + treatment)
    assert (report / "report.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    "family, recurrent, censored",
    [
        (
            {"a": [0.4, 0.41, 0.4], "wide": [0.6, 0.61, 0.6], "wider": [0.8, 0.81, 0.8]},
            [0.7, 0.7, 0.71],
            "",
        ),
        (
            {"a": [0.4, 0.41, 0.4], "wide": [0.6, 0.61, 0.6], "wider": [0.8, 0.81, 0.8]},
            [0.9, 0.92, 0.95],
            ">",
        ),
        (
            {"a": [0.4, 0.41, 0.4], "wide": [0.6, 0.61, 0.6], "wider": [0.8, 0.81, 0.8]},
            [0.3, 0.2, 0.25],
            "<",
        ),
        (
            {"a": [0.4, 0.41, 0.4], "wide": [0.6, 0.61, 0.6], "wider": [0.8, 0.81, 0.8]},
            [0.7, 0.92, 0.95],
            ">",
        ),
        (
            {"a": [0.4, 0.41, 0.4], "wide": [0.6, "failed", 0.6], "wider": [0.8, 0.81, "missing"]},
            [0.5, 0.5, 0.5],
            "",
        ),
    ],
)
def test_equal_accuracy_is_a_ratio_or_a_bound(tmp_path, family, recurrent, censored):
    report = plant(tmp_path / "r", family | {"b": recurrent}, WIDTHS)
    r, s = equal_accuracy(report, "parameters"), write_report(report)
    assert r.censored == censored and s["equal_accuracy"]["parameters"]["ratio"] == pytest.approx(
        r.ratio
    )
    words = {
        "no model of the feed-forward family is as accurate": r.all_beyond and censored == ">",
        "is more accurate in every seed": r.all_beyond and censored == "<",
        "a bound": bool(censored) and not r.all_beyond,
    }
    for said, expected in words.items():
        assert (said in (report / "index.html").read_text()) == expected, said


def test_no_ratio_without_a_family(tmp_path):
    report = plant(tmp_path / "r", {"a": [0.4, 0.4, 0.5], "b": [0.5, 0.5, 0.6]}, {"b": UNIT})
    assert equal_accuracy(report, "flops") is None and write_report(report)["equal_accuracy"] == {
        "parameters": None,
        "flops": None,
    }


def test_many_comparisons_are_adjusted(tmp_path):
    others = {f"e{i}": [0.5 + 0.01 * ((i * 7 + s * 3) % 5) for s in range(7)] for i in range(6)}
    family = comparisons(
        plant(
            tmp_path / "r",
            {"a": [0.5] * 7, "b": [0.51, 0.52, 0.5, 0.51, 0.53, 0.5, 0.52]} | others,
            {"b": UNIT},
        )
    ).to_dataframe()
    assert (
        set(family.index) == {"a", *others} and (family.p_adjusted >= family.p_value - 1e-12).all()
    )


@pytest.mark.parametrize(
    "seeds, failed, correction", [(6, 0, "max_t"), (6, 1, "holm"), (3, 0, "holm"), (8, 1, "max_t")]
)
def test_max_t_only_where_it_can_decide(tmp_path, seeds, failed, correction):
    values = ["failed"] * failed + [0.8 + 0.001 * s for s in range(seeds - failed)]
    family = comparisons(plant(tmp_path / "r", {"a": [0.5] * seeds, "b": values}, {"b": UNIT}))
    assert (
        family.correction == correction
        and family.to_dataframe().verdict["a"] == "not supported"
        and family.to_dataframe().p_adjusted["a"] <= 0.05
    )


@pytest.fixture(scope="module")
def analysed(tmp_path_factory) -> Path:
    """A planted study with all its figures, made by the notebooks.

    Here without papermill, which starts a kernel for each; test_study.py runs one with it.
    """
    root = tmp_path_factory.mktemp("analysed")
    accuracy = {
        "a": [0.4, 0.41, "failed"],
        "wide_50%": [0.6, 0.61, 0.6],
        "wider_&_more": [0.8, 0.81, 0.8],
        "b": [0.7, "missing", 0.71],
    }
    plant(
        root / "reports/planted",
        accuracy,
        dict(zip(accuracy, WIDTHS.values(), strict=True)),
        forced=True,
    )
    executed = root / "executed"
    executed.mkdir()
    for path in sorted((ROOT / "nbs/analysis").glob("*.ipynb")):
        notebook = json.loads(path.read_text())
        tagged = (c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", []))
        next(tagged)["source"] = [f"study, root = 'planted', {str(root)!r}"]
        (executed / path.name).write_text(json.dumps(notebook))
    for path, problem, _ in execute_all(sorted(executed.iterdir()), save=True, workers=1):
        assert not problem, f"{path.name}: {problem}"
    write_report(root / "reports/planted", root / "runs/planted/report")
    return root / "reports/planted"


def test_every_notebook_runs_on_what_is_there(analysed):
    drawn = {f["notebook"] for f in figures_of(analysed)}
    # the others have nothing to show here, and say so by being absent
    assert {"accuracy", "sizes", "ablations", "exits", "halting", "slopes"} <= drawn
    assert "convergence_ratio" in {f["name"] for f in figures_of(analysed)}
    made = analysed.parents[1] / "runs/planted/report"
    for f in figures_of(analysed):
        for suffix in ("svg", "png", "pdf"):
            assert (made / f["notebook"] / f"{f['name']}.{suffix}").stat().st_size
        assert (analysed / f"figures/{f['name']}.png").exists() and f["caption"]
    kept = {file.suffix for file in (analysed / "figures").iterdir()}
    assert kept == {".png", ".csv"}  # the rest is made when it is asked for
    for table in ("main_results", "ablations", "costs", "runs"):
        tex = (made / f"tables/{table}.tex").read_text()
        assert r"\toprule" in tex and r"wide\_50\%" in tex and r"wider\_\&\_more" in tex
    main = pd.read_csv(analysed / "figures/main_results.csv")
    # counts are whole numbers
    assert all(main[key].dtype.kind == "i" for key in ("parameters", "seeds", "failed", "missing"))


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [v for k, v in attrs if k in ("href", "src")]


@pytest.mark.parametrize("which", ["planted", "committed"])
def test_the_page_stands_alone(analysed, which):
    """Nothing is loaded from elsewhere, no script, and every link leads to a file."""
    report = analysed if which == "planted" else ROOT / "reports/nano"
    page = (report / "index.html").read_text()
    links = Links()
    links.feed(page)
    assert (
        len(links.found) > 10
        and "<script" not in page
        and "http" not in page.replace("http://www.w3.org", "")
    )
    assert [
        link
        for link in links.found
        if not link.startswith("data:") and not (report / unquote(link)).exists()
    ] == []


def test_built_twice_it_is_the_same(analysed, tmp_path):
    """From a copy, alone, elsewhere: the same bytes."""
    shutil.copytree(analysed, tmp_path / "planted")
    write_report(tmp_path / "planted")
    for name in ("index.html", "summary.json", "report.pdf"):
        assert (tmp_path / "planted" / name).read_bytes() == (analysed / name).read_bytes(), name
    # no NaN, which is not JSON
    assert json.loads((analysed / "summary.json").read_text(), parse_constant=pytest.fail)


def test_readme_says_what_the_report_says():
    verdict = json.loads((ROOT / "reports/nano/summary.json").read_text())["verdict"]
    for readme in ("README.md", "README.zh-CN.md"):
        assert f"**{verdict}**" in (ROOT / readme).read_text()


@pytest.mark.parametrize(
    "report",
    [file.parent for file in sorted((ROOT / "reports").glob("**/study.json"))],
    ids=lambda report: report.name,
)
def test_committed_results_give_the_committed_summary(report):
    """The summary follows from the other files, and there are no files but those of the study."""
    committed = flat(json.loads((report / "summary.json").read_text()))
    again = flat(json.loads(json.dumps(summarise(report))))
    assert again.keys() == committed.keys()
    for key, value in committed.items():
        expected = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
        assert again[key] == expected, key
    experiments = experiments_of(report)
    for folder in (p for p in report.iterdir() if p.is_dir() and p.name != "figures"):
        assert folder.name in experiments
        assert {file.name for file in folder.iterdir()} == {
            "config.json",
            "runs.json",
            "curves.csv",
            "answers.parquet",
            "closeups.json",
        }
        seeds = seeds_of(report, folder.name)
        assert [m["seed"] for m in json.loads((folder / "runs.json").read_text())] == seeds
        assert set(pd.read_csv(folder / "curves.csv").seed) == set(seeds)
    listed = {f["name"] for kind in ("figure", "table") for f in figures_of(report, kind)}
    assert {file.stem for file in (report / "figures").iterdir()} == listed
