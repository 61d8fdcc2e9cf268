"""What the documents say exists: links, commands, targets of make; and the Chinese README says
what the English one says.
"""

import json
import re
import shlex
import sys
import types
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import typer
import yaml
from conftest import ROOT, run

import zeromodel
from zeromodel.cli import app
from zeromodel.evaluation.statistical_tests import paired_comparison
from zeromodel.study.results import by_seed, costs, experiments_of, settings_of

TRANSLATION = {"README.md": "README.zh-CN.md"}
DOCUMENTS = ["README.md", "README.zh-CN.md", "INSTALL.md", "CHANGELOG.md"]
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


def broken_links(text: str, folder: Path) -> list[str]:
    """Relative links that lead nowhere."""
    return [
        link
        for link in links(text)
        if not re.match(r"\w+:|#", link) and not (folder / link.split("#")[0]).exists()
    ]


@pytest.mark.parametrize("name", DOCUMENTS + NOTEBOOKS)
def test_links(name):
    # the index becomes README.md
    folder = ROOT if name == "nbs/index.ipynb" else (ROOT / name).parent
    assert broken_links(markdown(name), folder) == []


def test_a_broken_link_is_seen():
    assert broken_links(
        "[a](README.md) [`b`](no.md#c) `[c](d.md)` [e](https://f.g) ![h](i.png)", ROOT
    ) == ["no.md#c", "i.png"]


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
    code = [
        line
        for _, block in FENCE.findall(body)
        for part in block.splitlines()
        if (line := re.split(r"(?:^|\s+)# ", part)[0].rstrip())
    ]
    return {
        "code": code,
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
    """Every notebook is in the site, those of the README's table in its order; what the site
    needs is pinned.
    """
    monkeypatch.setitem(sys.modules, "latex2mathml", types.ModuleType("latex2mathml"))
    monkeypatch.setitem(
        sys.modules, "latex2mathml.converter", types.ModuleType("latex2mathml.converter")
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = spec_from_file_location("conf", ROOT / "docs/conf.py")
    spec.loader.exec_module(conf := module_from_spec(spec))
    listed = re.findall(r"^/(\S+)$", conf.course(), re.M)
    table = [
        link.removesuffix(".ipynb")
        for link in links(dict(sections(markdown("README.md")))["## The course"])
    ]
    assert (
        listed[: len(table)] == table
        and set(listed) == {n.removesuffix(".ipynb") for n in NOTEBOOKS} - {"nbs/index"}
        and len(listed) == len(set(listed))
    )
    pins = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().split()}
    wanted = re.search(r"^docs = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert set(re.findall(r'"([\w-]+)"', wanted)) <= pins


def test_the_course_goes_on():
    """From the first notebook of the README's table to the last one before the report's, each
    names the next.
    """
    course = [
        ROOT / name
        for name in links(dict(sections(markdown("README.md")))["## The course"])
        if "/analysis/" not in name
    ]
    said = [
        re.findall(
            r"^Next: \[[^\]]+\]\(([^)]+)\)", markdown(notebook.relative_to(ROOT).as_posix()), re.M
        )
        for notebook in course
    ]
    assert [
        [(notebook.parent / name).resolve() for name in names]
        for notebook, names in zip(course, said, strict=True)
    ] == [[following] for following in course[1:]] + [[]]


@pytest.mark.parametrize(
    "folder", sorted((ROOT / "reports").glob("*/configs")), ids=lambda folder: folder.parent.name
)
def test_nothing_old_lies_in_a_report(folder):
    """Every committed file of a study is one that a stage of the pipeline leaves, for an
    experiment and a seed that the study has.
    """
    report, spec = folder.parent, json.loads((folder / "study.json").read_text())
    outs = set()
    for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values():
        paths = [
            path
            for out in [*stage.get("outs", []), *stage.get("metrics", [])]
            for path in ([out] if isinstance(out, str) else out)
        ]
        for key, values in stage.get("matrix", {"": [""]}).items():
            for value in spec["run"] if values == "${run}" else values:
                outs |= {
                    path.replace("${study}", report.name).replace(f"${{item.{key}}}", value)
                    for path in paths
                }
    committed = [
        line
        for line in run("git", "ls-files", f"reports/{report.name}", cwd=ROOT).stdout.splitlines()
        if (ROOT / line).exists()
    ]
    assert (
        committed
        and [f for f in committed if not any(f == out or f.startswith(f"{out}/") for out in outs)]
        == []
    )
    seeds = {
        name: {str(s) for s in json.loads((folder / f"{name}.json").read_text())["seeds"]}
        for name in spec["run"]
    }
    assert {
        name: {p.name for p in (report / "runs" / name).iterdir() if p.is_dir()}
        for name in spec["run"]
    } == seeds


@pytest.mark.parametrize("name", [*TRANSLATION, *TRANSLATION.values()])
@pytest.mark.parametrize("study", ["nano", "seeds", "longer"])
def test_results_in_the_text_are_those_of_the_reports(name, study):
    """The row of a study: steps, seeds, how many of them solve the deepest questions, the
    verdict.
    """
    report, main = ROOT / "reports" / study, "mla_lru_adaptive"
    solved, verdict = (
        (by_seed(report) >= 0.99).sum(),
        json.loads((report / "summary.json").read_text())["verdict"],
    )
    row = re.search(
        rf"^\| `{study}`[^|]*\|(.*)\|$", (ROOT / name).read_text(encoding="utf-8"), re.M
    )[1]
    expected = [
        settings_of(report, main)["training"]["steps"],
        len(by_seed(report)),
        solved[main],
        solved["looped"],
        solved["baseline_matched"],
        f"**{verdict}**",
    ]
    assert [cell.strip() for cell in row.split("|")] == [str(x) for x in expected]


@pytest.mark.parametrize("name", [*TRANSLATION, *TRANSLATION.values()])
def test_larger_plain_models_in_the_text_are_those_of_the_report(name):
    """Parameters, operations relative to the main model, mean accuracy and how many seeds solve
    it; and the three claims below the table.
    """
    report, main = ROOT / "reports/sizes", "mla_lru_adaptive"
    cost, scores = costs(report, experiments_of(report)), by_seed(report)
    rows = re.findall(
        r"^\| `(\w+)`[，,][^|]*\| ([\d,]+) \| ([\d.]+) \| (\.\d\d) \| (\d) (?:of|/) (\d) \|$",
        (ROOT / name).read_text(encoding="utf-8"),
        re.M,
    )
    expected = [
        (
            n,
            f"{cost.parameters[n]:,}",
            f"{cost.flops[n] / cost.flops[main]:.2f}" if n != main else "1",
            f"{scores[n].mean():.2f}".lstrip("0"),
            str((scores[n] >= 0.99).sum()),
            str(len(scores)),
        )
        for n, *_ in rows
    ]
    assert rows == expected and {n for n, *_ in rows} == set(experiments_of(report)) - {"baseline"}
    deep = paired_comparison(scores.baseline_deep, scores[main])
    assert (
        not deep.significant
        and f"{cost.parameters.baseline_deep / cost.parameters[main]:.1f}" == "2.2"
        and json.loads((report / "summary.json").read_text())["verdict"] == "supported"
    )
    assert (scores[main] < 0.3).sum() == 1
