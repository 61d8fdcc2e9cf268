"""Two studies whose difference is known, as folders and as commits."""

from pathlib import Path

import pytest
from conftest import commit, run
from planted import plant

from zeromodel.study.ablation import conclude
from zeromodel.study.compare import changes, compare, differences


def results(
    folder: Path, accuracy: dict[str, list[float | None]], seeds: list[int] | None = None, **model
) -> Path:
    """A folder of results in which the accuracies are known; None: the run is missing."""
    names = list(accuracy)
    return plant(
        folder,
        {
            name: ["missing" if a is None else a for a in values]
            for name, values in accuracy.items()
        },
        dict.fromkeys(names, model),
        (names[0], names[-1]),
        seeds=seeds,
    )


OLD = {"baseline": [0.5, 0.52, 0.48, 0.51, 0.49], "main": [0.7, 0.72, 0.69, 0.71, 0.7]}


@pytest.mark.parametrize(
    "main, expected",
    [
        ([0.8, 0.82, 0.79, 0.81, 0.81], "more than noise: better"),
        ([0.6, 0.62, 0.59, 0.61, 0.59], "more than noise: worse"),
        ([0.75, 0.66, 0.73, 0.66, 0.71], "no more than noise"),
        ([0.7, 0.72, 0.69, 0.71, 0.7], "the same in every seed"),
        ([0.8, None, None, None, 0.9], "too few seeds"),
        ([None] * 5, "no finished run"),
    ],
)
def test_planted_differences_are_found(tmp_path, main, expected):
    table, depth = differences(
        results(tmp_path / "a", OLD), results(tmp_path / "b", OLD | {"main": main})
    )
    assert depth == 3 and table.set_index("experiment").words["main"].startswith(expected)
    assert table.set_index("experiment").words["baseline"] == "the same in every seed"


def test_other_seeds_are_not_paired(tmp_path):
    a, b = (
        results(tmp_path / "a", OLD),
        results(
            tmp_path / "b", OLD | {"main": [0.9, 0.91, 0.92, 0.9, 0.93]}, seeds=[5, 6, 7, 8, 9]
        ),
    )
    table = differences(a, b)[0].set_index("experiment")
    assert (
        table.kind["main"] == "5 and 5 seeds"
        and table.words["main"] == "more than noise: better"
        and table.words["baseline"].startswith("no more than noise")
    )


def test_one_large_difference_of_many_is_expected(tmp_path):
    """The same p means less among twenty comparisons."""
    noisy = [0.58, 0.51, 0.56, 0.52, 0.55]
    for others, expected in ((0, "more than noise"), (20, "no more than noise")):
        names = {f"x{i}": [0.5, 0.52, 0.48, 0.51, 0.49] for i in range(others)}
        jitter = {n: [0.51, 0.5, 0.5, 0.5, 0.5] for n in names}
        a, b = (
            results(tmp_path / f"a{others}", {"main": [0.5] * 5, **names}),
            results(tmp_path / f"b{others}", {"main": noisy, **jitter}),
        )
        assert differences(a, b)[0].words[0].startswith(expected)


def test_what_was_changed(tmp_path):
    a, b = (
        results(tmp_path / "a", OLD),
        results(tmp_path / "b", OLD | {"new": [0.5] * 5}, hidden_size=32, lru_layers=[1]),
    )
    found = changes(a, b)
    assert ("every experiment", "model.hidden_size", 8, 32) in found and (
        "every experiment",
        "model.lru_layers",
        "–",
        [1],
    ) in found
    assert ("the study", "contrast.treatment", "main", "new") in found
    assert "have the same configurations" in compare(str(a), str(a))


def test_commits(tmp_path, monkeypatch):
    """The committed results are compared, not those in the working tree."""
    monkeypatch.chdir(tmp_path)
    run("git", "init", "-q", cwd=tmp_path)
    Path("params.yaml").write_text("study: tiny\n")
    for main in ([0.7, 0.72, 0.69, 0.71, 0.7], [0.8, 0.82, 0.79, 0.81, 0.81]):
        results(Path("reports/tiny"), OLD | {"main": main})
        commit(tmp_path, "results")
    results(Path("reports/tiny"), OLD | {"main": [0.1] * 5})
    said = run("zeromodel", "study", "compare", "HEAD~1", "HEAD", cwd=tmp_path).stdout
    assert "+0.102" in said and "more than noise: better" in said
    done = run("zeromodel", "study", "compare", "tinny", "HEAD", cwd=tmp_path, check=False)
    assert (
        done.returncode == 2
        and "did you mean tiny?" in done.stderr
        and len(done.stderr.splitlines()) == 1
    )


def test_tables_and_report_from_a_copy_alone(tmp_path):
    """An empty directory outside of git; names that LaTeX must be told about; an experiment
    without a single run.
    """
    results(
        tmp_path / "copied",
        {"base_line": OLD["baseline"], "50%&more": [None] * 5, "main": OLD["main"]},
    )
    (tmp_path / "copied/50%&more/answers.parquet").unlink()
    (tmp_path / "empty").mkdir()
    env = dict(cwd=tmp_path / "empty")
    latex = run(
        "zeromodel", "ablation", "--report-only", "--results-dir", "../copied", "--latex", **env
    ).stdout
    assert (
        latex.startswith(r"\begin{tabular}")
        and r"base\_line" in latex
        and r"50\%\&more" in latex
        and r"\bottomrule" in latex
    )
    said = run(
        "zeromodel",
        "ablation",
        "--report-only",
        "--results-dir",
        "../copied",
        "--output-dir",
        "out",
        **env,
    ).stdout
    assert (
        "(holm)" in said
        and "supported" in said
        and "50%&amp;more" in (tmp_path / "empty/out/index.html").read_text()
    )
    assert (tmp_path / "empty/out/ablation.tex").read_text() == latex
    assert conclude(tmp_path / "copied")["tex"] == latex
    done = run(
        "zeromodel", "ablation", "--report-only", "--results-dir", "nowhere", check=False, **env
    )
    assert (
        done.returncode == 2
        and "no results of a study" in done.stderr
        and len(done.stderr.splitlines()) == 1
    )
