"""Links, commands, targets of make and numbers in the documents are right, and the Chinese README
says what the English one says.
"""

import json
import re
import shlex
import sys
import types
from collections import Counter
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pandas as pd
import pytest
import typer
import yaml
from conftest import ROOT

import zeromodel
from zeromodel.cli import app
from zeromodel.evaluation.statistical_tests import paired_comparison

TRANSLATION = {"README.md": "README.zh-CN.md"}
DOCUMENTS = [
    "README.md",
    "README.zh-CN.md",
    "INSTALL.md",
    "CHANGELOG.md",
    "docs/results.md",
    "docs/LOG.md",
    "docs/extend.md",
]
NOTEBOOKS = sorted(
    p.relative_to(ROOT).as_posix()
    for p in (ROOT / "nbs").rglob("*.ipynb")
    if ".ipynb_checkpoints" not in p.parts
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def prose(text: str) -> str:
    """Without code: neither fenced nor in a line."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(text))


def markdown(name: str) -> str:
    """The text of a document, or of the Markdown cells of a notebook."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return (
        text
        if name.endswith(".md")
        else "\n\n".join(
            "".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown"
        )
    )


def anchors(text: str) -> set[str]:
    """The names of the headings of a document, as GitHub makes them."""
    return {
        re.sub(r"[^\w -]", "", heading.lstrip("# ").lower()).replace(" ", "-")
        for heading, _ in sections(text)
    }


def leads_nowhere(link: str, folder: Path) -> bool:
    """Whether a relative link names no file, or a heading that its Markdown file lacks."""
    name, _, anchor = link.partition("#")
    path = folder / name
    if not path.exists():
        return True
    return bool(anchor) and path.suffix == ".md" and anchor not in anchors(path.read_text())


def broken_links(text: str, folder: Path) -> list[str]:
    """Relative links that lead nowhere."""
    relative = [link for link in links(text) if not re.match(r"\w+:|#", link)]
    return [link for link in relative if leads_nowhere(link, folder)]


@pytest.mark.parametrize("name", DOCUMENTS + NOTEBOOKS)
def test_links(name):
    # the index becomes README.md
    folder = ROOT if name == "nbs/index.ipynb" else (ROOT / name).parent
    assert broken_links(markdown(name), folder) == []


def test_a_broken_link_is_seen():
    text = (
        "[a](README.md) [`b`](no.md#c) `[c](d.md)` [e](https://f.g) ![h](i.png)"
        " [j](README.md#quick-start) [k](README.md#no-such-heading)"
    )
    assert broken_links(text, ROOT) == ["no.md#c", "i.png", "README.md#no-such-heading"]


def commands(text: str) -> list[list[str]]:
    """The commands in fenced shell blocks, word by word, without comments and settings of
    variables before them.
    """
    lines = [
        line
        for language, body in FENCE.findall(text)
        if language == "sh"
        for line in body.replace("\\\n", " ").splitlines()
    ]
    words = [shlex.split(line, comments=True) for line in lines]
    return [
        w[next((i for i, x in enumerate(w) if not re.match(r"\w+=", x)), 0) :] for w in words if w
    ]


def mistake(words: list[str]) -> str:
    """What is wrong with a call of `zeromodel`, empty if nothing. It is parsed, not run."""
    command, (name, *rest) = typer.main.get_command(app), words
    try:
        while hasattr(command, "commands"):
            if not rest or rest[0] not in command.commands:
                return f"no command '{' '.join(words)}'"
            command, (name, *rest) = command.commands[rest[0]], rest
        command.make_context(name, rest).close()
    except Exception as e:
        if not hasattr(e, "format_message"):
            raise
        return f"{' '.join(words)}: {e.format_message()}"
    return ""


CALLS = [
    (name, words)
    for name in DOCUMENTS
    for words in commands(markdown(name))
    if words[0].endswith("zeromodel")
]


@pytest.mark.parametrize(
    "name,words", CALLS, ids=[f"{name}: {' '.join(words)[:60]}" for name, words in CALLS]
)
def test_command_exists(name, words):
    assert mistake(words) == ""


def test_a_wrong_command_is_seen():
    assert "no command" in mistake(["zeromodel", "trian"]) and "no command" in mistake(
        ["zeromodel", "study", "show_all"]
    )
    assert (
        "--no-such" in mistake(["zeromodel", "params", "--no-such"])
        and mistake(["zeromodel", "params", "--length", "x"])
        and not mistake(["zeromodel", "params", "--length", "64"])
    )


@pytest.mark.parametrize("service", ["ablation-test", "ablation-run", "param-counter"])
def test_command_of_service_exists(service):
    words = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"][service][
        "command"
    ]
    if words[1] not in typer.main.get_command(app).commands:
        pytest.skip(f"'zeromodel {words[1]}' does not exist yet")
    assert mistake(words) == ""


@pytest.mark.parametrize("name", DOCUMENTS)
def test_targets_of_make_exist(name):
    targets = set(
        re.findall(
            r"^([\w./-]+):", (ROOT / "Makefile").read_text().replace("$(BIN)", ".venv/bin"), re.M
        )
    )
    called = [
        t
        for words in commands(markdown(name))
        if words[0] == "make"
        for t in words[1:]
        if "=" not in t
    ]
    assert set(called) | set(re.findall(r"`make ([a-z]\w*)`", markdown(name))) <= targets
    assert called or "README" not in name


def sections(text: str) -> list[tuple[str, str]]:
    """(heading, body) of every section; a `#` in a block of code is no heading."""
    hidden = FENCE.sub(lambda m: re.sub("^#", "\0", m[0], flags=re.M), text)
    parts = re.split(r"^(#+ .*)$", hidden, flags=re.M)
    return [(h, b.replace("\0", "#")) for h, b in zip(parts[1::2], parts[2::2], strict=True)]


def inventory(body: str) -> dict[str, list[str]]:
    """What must be the same in every language."""
    blocks = FENCE.findall(body)
    code = [
        line
        for language, block in blocks
        for part in block.splitlines()
        if language and (line := re.split(r"(?:^|\s+)# ", part)[0].rstrip())
    ]
    # diagrams and trees have words in them
    lines = [str(block.count("\n")) for language, block in blocks if not language]
    return {
        "code": code,
        "lines of diagrams": lines,
        "links and images": sorted(links(body)),
        "code in the text": sorted(re.findall(r"`([^`\n]+)`", FENCE.sub("", body))),
        "table rows": [str(len(re.findall(r"^\|", body, re.M)))],
        "points": [str(len(re.findall(r"^\* ", body, re.M)))],
    }


def out_of_step(text: str, translated: str) -> list[str]:
    """Where a translation differs from its original, section by section."""
    here, there = sections(text), sections(translated)

    def level(parts):
        return [h.split()[0] for h, _ in parts]

    if level(here) != level(there):
        return [f"headings differ: {[h for h, _ in here]} and {[h for h, _ in there]}"]
    found = []
    for (heading, body), (_, other) in zip(here, there, strict=True):
        for what, items in inventory(body).items():
            if items == (others := inventory(other)[what]):
                continue
            lacks, has = Counter(items) - Counter(others), Counter(others) - Counter(items)
            found.append(
                f"'{heading}', {what}: missing in the translation {[*lacks]}, only there {[*has]}"
                + (", another order" if not lacks and not has else "")
            )
    return found


@pytest.mark.parametrize("name", TRANSLATION)
def test_translation_is_in_step(name):
    assert out_of_step(markdown(name), markdown(TRANSLATION[name])) == []


def test_a_translation_out_of_step_is_pinpointed():
    text = "# A\n\n`x` [l](m.md)\n\n## B\n\n```sh\nmake repro  # all\n# more\nmake test\n```\n"
    assert (
        out_of_step(
            text, text.replace("# all", "# 全部").replace("# more", "# 更多").replace("# A", "# 甲")
        )
        == []
    )
    assert out_of_step(text, text.replace("make test", "make tset")) == [
        "'## B', code: missing in the translation ['make test'], only there ['make tset']"
    ]
    assert out_of_step(text, text.replace("m.md", "n.md")) == [
        "'# A', links and images: missing in the translation ['m.md'], only there ['n.md']"
    ]
    assert "headings differ" in out_of_step(text, text.replace("## B", "### B"))[0]


def test_citation():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited) and cited[
        "cff-version"
    ] == "1.2.0"
    assert (str(cited["version"]), cited["authors"]) == (
        zeromodel.__version__,
        [{"name": "ZeroModel Authors"}],
    )


def test_site_has_the_course(monkeypatch):
    """Every notebook is in the site once, by the numbers of the folders; what the site needs is
    pinned.
    """
    converter = types.ModuleType("latex2mathml.converter")
    monkeypatch.setitem(sys.modules, "latex2mathml", types.ModuleType("latex2mathml"))
    monkeypatch.setitem(sys.modules, "latex2mathml.converter", converter)
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = spec_from_file_location("conf", ROOT / "docs/conf.py")
    spec.loader.exec_module(conf := module_from_spec(spec))
    listed = re.findall(r"^/(\S+)$", conf.course(), re.M)
    assert sorted(listed) == sorted({n.removesuffix(".ipynb") for n in NOTEBOOKS} - {"nbs/index"})
    numbered = [name for name in listed if re.match(r"nbs/\d_|nbs/00_", name)]
    assert numbered == sorted(numbered)
    pins = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().split()}
    wanted = re.search(r"^docs = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert set(re.findall(r'"([\w-]+)"', wanted)) <= pins


def python_blocks(name: str) -> list[str]:
    return [body for language, body in FENCE.findall(markdown(name)) if language == "python"]


@pytest.mark.parametrize("name", [*TRANSLATION, *TRANSLATION.values()])
def test_the_lines_of_python_run(name, capsys):
    (block,) = python_blocks(name)
    exec(compile(block, name, "exec"), {})
    said, shape = capsys.readouterr().out.splitlines()[:2]
    assert said == "A=1 B=3 C=4 -> 4"  # what the comment in the block says
    assert shape.startswith("torch.Size([1, ")


def test_the_example_of_a_statistic_runs():
    exec(compile(python_blocks("docs/extend.md")[-1], "docs/extend.md", "exec"), {})


# Numbers: what the documents say is what the reports hold.

STUDIES = {
    "nano": ROOT / "reports/nano",
    "seeds": ROOT / "reports/first_design/seeds",
    "longer": ROOT / "reports/first_design/longer",
    "sizes": ROOT / "reports/first_design/sizes",
}
MAIN, CONTROL = "mla_lru_adaptive", "baseline_matched"


@cache
def summary(study: str) -> dict:
    return json.loads((STUDIES[study] / "summary.json").read_text())


@cache
def answers(study: str, experiment: str) -> pd.DataFrame:
    """Counts of answers: a row for each seed, forced exit, level, order, depth and outcome."""
    return pd.read_parquet(STUDIES[study] / experiment / "answers.parquet")


@cache
def settings(study: str, experiment: str = MAIN) -> dict:
    return json.loads((STUDIES[study] / experiment / "config.json").read_text())["config"]


def number(x: float, digits: int = 3) -> str:
    """A number as the tables write it: without a zero before the point."""
    return re.sub(r"^(-?)0\.", r"\1.", f"{x:.{digits}f}")


def signed(x: float) -> str:
    return ("+" if x >= 0 else "") + number(x)


def accuracy(study: str, experiment: str) -> str:
    """Mean accuracy at the deepest trained depth."""
    return number(summary(study)["experiments"][experiment]["deepest"])


def share(rows: pd.DataFrame) -> pd.Series:
    """Share of right answers for each seed."""
    right = rows[rows.correct == 1].groupby("seed").n.sum()
    asked = rows.groupby("seed").n.sum()
    return right.reindex(asked.index, fill_value=0) / asked


def solved(study: str, experiment: str) -> str:
    """How many seeds answer at least 99% of the deepest questions."""
    rows = answers(study, experiment).query("level == 1 and forward == 1 and forced == 0")
    by_seed = share(rows[rows.depth == summary(study)["deepest_depth"]])
    return f"{(by_seed >= 0.99).sum()} of {len(by_seed)}"


def rows_of(text: str) -> dict[str, list[str]]:
    """Cells of the rows of Markdown tables by their first cell; backticks are dropped."""
    rows = re.findall(r"^\| ?(.*?) ?\|$", text, re.M)
    cells = [[cell.strip().replace("`", "") for cell in row.split("|")] for row in rows]
    return {first: rest for first, *rest in cells}


def results_section(heading: str) -> str:
    found = [b for h, b in sections(markdown("docs/results.md")) if heading in h]
    assert len(found) == 1, heading
    return found[0]


@pytest.mark.parametrize("name", [*TRANSLATION, *TRANSLATION.values()])
@pytest.mark.parametrize("study", STUDIES)
def test_results_in_the_readme_are_those_of_the_reports(name, study):
    rows = {re.split("[,，]", first)[0]: rest for first, rest in rows_of(markdown(name)).items()}
    experiments = summary(study)["experiments"]
    assert rows[study] == [
        str(experiments[MAIN]["seeds"]),
        str(settings(study)["training"]["steps"]),
        accuracy(study, MAIN),
        accuracy(study, "looped") if "looped" in experiments else "–",
        accuracy(study, CONTROL),
        f"**{summary(study)['verdict']}**",
    ]


@pytest.mark.parametrize("name", [*TRANSLATION, *TRANSLATION.values()])
def test_numbers_in_the_answer_are_those_of_the_reports(name):
    """Every number with a point and every count of seeds in the second section, in its order."""
    sizes = {n: e["parameters"] for n, e in summary("sizes")["experiments"].items()}
    deep, double = (sizes[n] / sizes[MAIN] for n in ("baseline_deep", "baseline_double"))
    expected = [
        accuracy("seeds", MAIN),
        accuracy("seeds", CONTROL),
        f"{double:.1f}",
        accuracy("sizes", "baseline_double"),
        accuracy("sizes", MAIN),
        solved("longer", "looped"),
        f"{deep:.1f}",
        solved("seeds", MAIN),
        solved("sizes", MAIN),
    ]
    assert solved("longer", "looped") == solved("longer", MAIN)  # "both"
    text = sections(markdown(name))[1][1]
    found = re.findall(r"\d*\.\d+|\d+(?: of |/)\d+", text)
    assert [x.replace("/", " of ") for x in found] == expected


ROWS = [(study, experiment) for study in STUDIES for experiment in summary(study)["experiments"]]


@pytest.mark.parametrize("study,experiment", ROWS)
def test_rows_of_the_studies_are_those_of_the_reports(study, experiment):
    rows = rows_of(results_section(f"## `{study}`"))
    of = summary(study)["experiments"][experiment]
    assert rows[experiment] == [
        f"{of['parameters']:,}",
        f"{of['flops']:,}",
        number(of["deepest"]),
        f"{number(of['lower'])} to {number(of['upper'])}",
        solved(study, experiment),
    ]
    assert len(rows) - 2 == len(summary(study)["experiments"])  # header and rule


@pytest.mark.parametrize("study", STUDIES)
def test_verdicts_are_those_of_the_reports(study):
    report, contrast = summary(study)["comparison"], summary(study)["contrast"]
    assert rows_of(results_section("## Verdicts"))[study] == [
        contrast["treatment"],
        contrast["control"],
        signed(report["difference"]),
        f"{signed(report['lower'])} to {signed(report['upper'])}",
        number(report["p_value"], 4),
        summary(study)["verdict"],
    ]


def test_no_difference_to_six_layers_is_shown():
    rows = "level == 1 and forward == 1 and forced == 0 and depth == 2"
    deep, main = (share(answers("sizes", n).query(rows)) for n in ("baseline_deep", MAIN))
    found = paired_comparison(deep, main)
    low, high = (re.sub("0[.]", ".", f"{x:+.2f}") for x in (found.lower, found.upper))
    assert not found.significant
    said = results_section("## Verdicts")
    assert f"ahead by {(main - deep).mean():+.2f}".replace("0.", ".") in said
    assert f"(interval {low} to {high})" in said


@pytest.mark.parametrize("study", STUDIES)
def test_machines_are_those_of_the_runs(study):
    runs = [
        run
        for experiment in summary(study)["experiments"]
        for run in json.loads((STUDIES[study] / experiment / "runs.json").read_text())
    ]
    versions = {(r["versions"]["torch"], r["versions"]["transformers"]) for r in runs}
    assert len(versions) == 1 and {r["status"] for r in runs} == {"finished"}
    _, *said, python, count = rows_of(results_section("## Machine"))[study]
    assert (tuple(said), python) == (*versions, runs[0]["versions"]["python"])
    assert count == str(len(runs))


CARRIED = {
    "level 1, chains, forward order": "level == 1 and forward == 1",
    "level 2, one loop": "level == 2 and forward == 1",
    "level 3, joins": "level == 3 and forward == 1",
    "level 4, nested loops": "level == 4 and forward == 1",
    "chains in random order, depth 1": "level == 1 and forward == 0 and depth == 1",
    "chains in random order, depth 2": "level == 1 and forward == 0 and depth == 2",
}


@pytest.mark.parametrize("row", CARRIED)
def test_what_carries_over_is_in_the_answers(row):
    expected = [
        number(share(answers("seeds", n).query(f"forced == 0 and {CARRIED[row]}")).mean())
        for n in (MAIN, "looped", CONTROL)
    ]
    assert rows_of(results_section("## What carries over"))[row] == expected


@pytest.mark.parametrize("depth", range(3))
def test_forced_exits_are_in_the_answers(depth):
    rows = answers("seeds", MAIN).query(f"level == 1 and forward == 1 and depth == {depth}")
    expected = [number(share(rows[rows.forced == n]).mean()) for n in range(1, 7)]
    assert rows_of(results_section("## What carries over"))[str(depth)] == expected
