"""Every shortcut is found where it was built in, and none where it was not."""

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from random import Random

import pyarrow.feather
import pyarrow.parquet
import pytest

from zeromodel.tasks.causal_loop.audit.judge import REASONS
from zeromodel.tasks.causal_loop.audit.report import AuditResult, audit, audit_folder
from zeromodel.tasks.causal_loop.audit.shortcuts import SHORTCUTS, AuditError, each
from zeromodel.tasks.causal_loop.problem import parse, sample

N = "BCDEFGHIJKLMNOPQRSTUVWXYZ"


def records(make: Callable[[Random], dict], n: int, seed: int) -> list[dict]:
    rng = Random(seed)
    return [make(rng) for _ in range(n)]


def solved(text: str, level: int = 1) -> dict:
    return sample(parse(text), level, "t")


def listed(rng: Random, rules: list[str], query: str, level: int = 1) -> dict:
    """The record of `rules` in random order, modulo 17."""
    return solved(f"mod 17. {', '.join(rng.sample(rules, len(rules)))}; {query}=?", level)


def number(rng: Random) -> int:
    return rng.randrange(1, 17)


# What each suite gives away, and the shortcuts that must notice.
def sums(rng):  # one chain that only adds, and no distractor: the order does not matter
    return listed(
        rng,
        [
            f"A={rng.randrange(17)}",
            f"B=A+{number(rng)}",
            f"C=B-{number(rng)}",
            f"D=C+{number(rng)}",
        ],
        "D",
    )


def mostly_zero(rng):
    return listed(
        rng,
        [
            f"A={rng.choice([0, number(rng)])}",
            f"B=A*{number(rng)}",
            f"C=B*{number(rng)}",
            f"X={number(rng)}",
        ],
        "C",
    )


def fixed_start(rng):  # the loop starts where it ends
    a, k = rng.randrange(17), rng.randrange(2, 17)
    return listed(rng, [f"A={a}", f"B=A*{k}", f"A=B+{(a - a * k) % 17}"], "A", level=2)


def always_three(rng):  # the last rule always reads 0
    return listed(
        rng, [f"A={rng.randrange(17)}", "B=A*0", f"C=B+{rng.choice([0, 0, 0, *range(17)])}"], "C"
    )


def idle_rule(rng):
    return listed(
        rng,
        [f"A={rng.randrange(17)}", "B=A*1", f"C=B+{number(rng)}", f"X={rng.randrange(17)}"],
        "C",
    )


def at_the_end(rng):  # rules in the order of evaluation, but for a distractor
    a, x = rng.randrange(17), rng.randrange(17)
    return solved(
        f"mod 17. Y=X*3, X={x}, A={a}, B=A+{number(rng)}, C=B*{number(rng)}, D=C+{number(rng)}; D=?"
    )


def two_lines(rng):
    return solved(
        f"mod 17. Y=X+{number(rng)}, X={number(rng)}, Z=X*{number(rng)}, A={rng.randrange(17)},"
        f" B=A+{number(rng)}; B=?"
    )


def alone_in_depth(rng):  # nothing else is as deep
    return listed(
        rng,
        [
            f"A={rng.randrange(17)}",
            f"B=A+{number(rng)}",
            f"C=B*{number(rng)}",
            f"D=C+{number(rng)}",
            f"S={rng.randrange(17)}",
            *(f"{v}=S+{number(rng)}" for v in "TUVWXYZ"),
        ],
        "D",
    )


def early_reader(rng):  # B takes nine laps, A stands still from the first; A is read
    return listed(
        rng,
        [
            f"A={rng.randrange(17)}",
            "A=A*1",
            "B=2",
            "E=B*B",
            "F=E+5",
            "B=F%14",
            f"R=A+{number(rng)}",
        ],
        "R",
        level=4,
    )


def ends_at_zero(rng):
    return listed(
        rng, [f"A={number(rng)}", "B=A*A", "A=B%1", f"C=A+{rng.randrange(17)}"], "C", level=2
    )


def long_settled(rng):
    return listed(
        rng,
        [f"A={rng.randrange(17)}", "B=A*A", "A=B%5", f"C=A+{rng.randrange(17)}"],
        "9| C",
        level=2,
    )


def small_universe(rng):
    return listed(
        rng,
        [f"A={rng.randrange(6)}", f"B=A+{rng.randrange(1, 6)}", f"C=B*{rng.randrange(2, 6)}"],
        "C",
    )


LEAKY = {
    sums: ["factors first", "terms first", "query removed", "bag of tokens", "bag of the path"],
    mostly_zero: ["answer prior"],
    fixed_start: ["initial value"],
    always_three: ["last rule of the prior", "bag of bigrams", "path in order"],
    idle_rule: ["last rule of the initial value"],
    at_the_end: ["listed order", "names ignored", "last variable"],
    two_lines: ["last line"],
    alone_in_depth: ["deepest variable"],
    early_reader: [
        "stop after 0 laps",
        "stop after 1 laps",
        "stop after 2 laps",
        "stop after 4 laps",
    ],
    ends_at_zero: ["seeds at zero", "first fixed point", "largest basin"],
    long_settled: ["many laps"],
    small_universe: ["nearest neighbour"],
}


def clean_chain(rng: Random, depth: int) -> dict:
    """Operators in changing order, three chains whatever the depth, the main one going on beyond
    the query, distractors that hang on it.
    """
    names = rng.sample("A" + N, 12)
    kinds = rng.choice([[1, 0, 1], [0, 1, 0]]) + [rng.randrange(2) for _ in range(depth - 3)]

    def rule(target, left, multiply):
        return (
            f"{target}={left}*{rng.randrange(2, 17)}"
            if multiply
            else f"{target}={left}{rng.choice('+-')}{number(rng)}"
        )

    rules = [f"{v}={rng.randrange(17)}" for v in (names[0], *names[-2:])] + [
        rule(b, a, k) for a, b, k in zip(names[:depth], names[1 : depth + 1], kinds, strict=True)
    ]
    beyond = rng.randrange(10 - depth)
    for i in range(depth + 1, 10):
        left = names[i - 1] if i <= depth + beyond else rng.choice(names[:i] + names[-2:])
        rules.append(rule(names[i], left, rng.randrange(2)))
    return listed(rng, rules, names[depth])


def split(make: Callable[[Random], dict], n: int, seed: int, test: bool) -> list[dict]:
    """Records whose canonical hash lies in the wanted half."""

    def wanted(rng: Random) -> Iterator[dict]:
        while True:
            if int((r := make(rng))["hash"], 16) >> 63 == test:
                yield r

    rng = Random(seed)
    found = wanted(rng)
    return [next(found) for _ in range(n)]


@pytest.fixture(scope="module")
def clean() -> AuditResult:
    def make(rng):
        return clean_chain(rng, 5)

    return audit(
        split(make, 3000, 1, False), split(make, 200, 2, False), split(make, 2000, 3, True)
    )


def test_every_shortcut_has_a_leaky_suite():
    assert sorted(sum(LEAKY.values(), [])) == sorted(SHORTCUTS)


@pytest.mark.parametrize("make", LEAKY, ids=lambda f: f.__name__)
def test_a_leak_is_found(make):
    result = audit(records(make, 400, 1), [], records(make, 150, 2))
    assert set(LEAKY[make]) <= set(result.leaks.shortcut)
    assert result.exit_status == 1
    for name in LEAKY[make]:
        assert f"| {name} | " in result.to_markdown().split("## Level")[0].split("## Leaks")[1]


def test_a_clean_suite_passes(clean):
    assert clean.leaks.empty and clean.failed_checks.empty and clean.exit_status == 0
    verdicts = clean.rows.set_index("shortcut").verdict
    assert (verdicts == "explained").sum() <= 2 and verdicts["deepest variable"] in (
        "explained",
        "too few",
    )
    assert (verdicts == "at chance").sum() >= len(verdicts) * 3 / 4


def test_a_reason_is_needed_and_its_ceiling_holds():
    """The same accuracy passes with a reason, fails without one, and fails above the ceiling of
    a reason that allows less.
    """

    def make(rng):
        return listed(
            rng,
            [
                f"A={rng.randrange(17)}",
                f"B=A*{rng.randrange(2, 17)}",
                f"C=A+{number(rng)}",
                f"X={rng.randrange(17)}",
            ],
            rng.choice("BC"),
        )

    one = {"last rule of the initial value": SHORTCUTS["last rule of the initial value"]}

    def verdict(reasons):
        return (
            audit(
                records(make, 300, 1),
                [],
                records(make, 300, 2),
                shared_below=2,
                shortcuts=one,
                reasons=reasons,
            )
            .rows.verdict.unique()
            .tolist()
        )

    assert verdict(REASONS) == ["explained"]
    assert verdict([r for r in REASONS if "last rule of the initial value" not in r.shortcuts]) == [
        "leak"
    ]
    assert verdict(
        [
            r._replace(ceiling=lambda q: 0.5)
            for r in REASONS
            if "last rule of the initial value" in r.shortcuts
        ]
    ) == ["leak"]


def test_a_new_shortcut_takes_part(clean):
    def make(rng):
        return clean_chain(rng, 5)

    peek = {"the oracle": (each(lambda q: q.answer), ("depth",))}
    result = audit(
        split(make, 100, 1, False), [], split(make, 100, 3, True), shortcuts=SHORTCUTS | peek
    )
    assert result.leaks.shortcut.tolist() == ["the oracle"]


def test_a_disguised_training_problem_is_found(clean):
    def make(rng):
        return clean_chain(rng, 4)

    train, test = split(make, 60, 1, False), split(make, 59, 2, True)
    p = parse(train[7]["text"])
    rename = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "QWERTYUIOPASDFGHJKLZXCVBNM")
    stolen = solved(
        "mod 17. " + f"{', '.join(map(str, reversed(p.rules)))}; {p.query[0]}=?".translate(rename)
    )
    checks = audit(train, [], [*test, stolen]).checks.set_index("check")
    assert (
        checks.loc["asked in train and test", "count"],
        checks.loc["asked in train and test", "verdict"],
    ) == (1, "failed")
    assert (
        audit(train, [], test).checks.set_index("check").loc["asked in train and test", "count"]
        == 0
    )


def test_length_that_tells_the_depth_is_found(clean):
    assert (clean.checks[clean.checks.check.str.startswith("correlation")].verdict == "ok").all()

    def chain(rng):
        depth = rng.randrange(3, 8)
        return listed(
            rng,
            [
                f"A={number(rng)}",
                *(f"{b}={a}*{rng.randrange(2, 17)}" for a, b in pairwise("A" + N[:depth])),
            ],
            N[depth - 1],
        )

    result = audit(records(chain, 100, 1), [], records(chain, 100, 2))
    (row,) = result.failed_checks[
        result.failed_checks.check.str.startswith("correlation")
    ].itertuples()
    assert row.value > 0.99


def test_wrong_answers_are_found(clean):
    train, test = records(idle_rule, 50, 1), records(idle_rule, 50, 2)
    test[3]["answer"] = [(test[3]["answer"][0] + 1) % 17]
    row = audit(train, [], test).checks.set_index("check").loc["recorded answer is wrong"]
    assert (row["count"], row.verdict) == (1, "failed")


def test_same_input_same_bytes(clean):
    def make(rng):
        return clean_chain(rng, 4)

    one, two = (audit(split(make, 150, 1, False), [], split(make, 150, 2, True)) for _ in range(2))
    assert one.to_json() == two.to_json() and one.to_markdown() == two.to_markdown()
    again = AuditResult.from_json(one.to_json())
    assert again.to_markdown() == one.to_markdown() and again.exit_status == one.exit_status


def test_folders(tmp_path):
    """Files are read and refused with one line that says what is wrong and where."""

    def refused(message):
        with pytest.raises(AuditError, match=message) as e:
            audit_folder(tmp_path)
        assert "\n" not in str(e.value)

    def lines(rs):
        return "".join(json.dumps(r) + "\n" for r in rs)

    with pytest.raises(AuditError, match="no such folder"):
        audit_folder(tmp_path / "nowhere")
    refused("has no train.jsonl")
    (tmp_path / "train.jsonl").write_text(lines(records(idle_rule, 50, 1)))
    refused("has no test.jsonl")
    (tmp_path / "test.jsonl").write_text(lines(records(idle_rule, 20, 2)) + "{\n")
    refused("test.jsonl, line 21: ")
    (tmp_path / "test.jsonl").write_bytes(b"\xff\xfe\x00")
    refused("test.jsonl, line 1: ")
    (tmp_path / "test.jsonl").write_text("[1]\n")
    refused("test.jsonl, line 1: expected a record, not list")
    (tmp_path / "test.jsonl").write_text("")
    refused("test: no records")
    (tmp_path / "test.jsonl").write_text(
        lines([solved("mod 17. A=1; A=?") | dict(text="A is one")])
    )
    refused("record t: 'A is one': expected")
    (tmp_path / "test.jsonl").write_text(lines([solved("mod 5. A=1, B=A*1; B=?")]))
    refused("modulo 5, 17: a suite has one modulus")
    (tmp_path / "test.jsonl").write_text(lines(records(ends_at_zero, 20, 2)))
    refused(r"test asks for level 2 \(tau\), train does not")
    (tmp_path / "test.jsonl").write_text(
        lines([solved("mod 17. A=1, A=A+0; A=?") | dict(text="mod 17. A=1, A=A+1; A=?")])
        + lines(records(idle_rule, 20, 2))
    )
    (tmp_path / "train.jsonl").write_text(
        lines(records(idle_rule, 50, 1)) + lines([solved("mod 17. A=1, A=A+0; A=?")])
    )
    refused("returns to an earlier state")
    (tmp_path / "test.jsonl").write_text(lines(records(idle_rule, 20, 2)))
    assert audit_folder(tmp_path).info["questions"] == 20
    assert audit_folder(tmp_path, train_limit=10, name="short").info["train"] <= 10


@pytest.mark.parametrize(
    "format, write",
    [("parquet", pyarrow.parquet.write_table), ("arrow", pyarrow.feather.write_feather)],
)
def test_columns_are_the_same_as_jsonl(tmp_path, format, write):
    for folder in ("jsonl", format):
        (tmp_path / folder).mkdir()
    for name, seed in (("train", 1), ("test", 2)):
        rs = records(idle_rule, 40, seed)
        (tmp_path / "jsonl" / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rs))
        write(pyarrow.Table.from_pylist(rs), str(tmp_path / format / f"{name}.{format}"))
    assert (
        audit_folder(tmp_path / "jsonl", name="x").to_json()
        == audit_folder(tmp_path / format, name="x").to_json()
    )
    (tmp_path / format / f"test.{format}").write_text("no")
    with pytest.raises(AuditError, match=f"test.{format}: "):
        audit_folder(tmp_path / format)
