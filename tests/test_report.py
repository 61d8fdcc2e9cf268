"""The report on folders in which the truth is known, and on the real one."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, run
from planted import UNIT, plant

from zeromodel.study.report import figures_of, write_report
from zeromodel.study.results import comparisons, equal_accuracy

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
    """A planted study with all its figures, made by the notebooks through papermill."""
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
    (root / "reports/planted/notebooks").mkdir()
    for notebook in sorted((ROOT / "nbs/analysis").glob("*.ipynb")):
        run(
            "papermill",
            "--kernel",
            "python3",
            "--no-progress-bar",
            "-p",
            "study",
            "planted",
            "-p",
            "root",
            str(root),
            str(notebook),
            str(root / f"reports/planted/notebooks/{notebook.name}"),
            cwd=ROOT,
        )
    write_report(root / "reports/planted")
    return root / "reports/planted"


def test_every_notebook_runs_on_what_is_there(analysed):
    drawn = {f["stem"].split("/")[1] for f in figures_of(analysed)}
    # the others have nothing to show here, and say so by being absent
    assert {"accuracy", "sizes", "ablations", "exits", "halting", "slopes"} <= drawn
    assert "halting/5_convergence_ratio" in {
        f["stem"].removeprefix("figures/") for f in figures_of(analysed)
    }
    for f in figures_of(analysed):
        for suffix in ("svg", "png", "pdf", "txt"):
            assert (analysed / f"{f['stem']}.{suffix}").stat().st_size
    for table in ("main_results", "ablations", "costs", "runs"):
        tex = (analysed / f"figures/tables/{table}.tex").read_text()
        assert r"\toprule" in tex and r"wide\_50\%" in tex and r"wider\_\&\_more" in tex
    main = pd.read_csv(analysed / "figures/tables/main_results.csv")
    # counts are whole numbers
    assert (main[["parameters", "seeds", "failed", "missing"]].dtypes == int).all()


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
        if not link.startswith("data:") and not (report / link).exists()
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
