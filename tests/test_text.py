"""Text and structure are one to one: canonical text and every template, on arbitrary problems
and on arbitrary text.
"""

from string import ascii_uppercase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zeromodel.tasks.causal_loop.generator.stream import problems as draw_problems
from zeromodel.tasks.causal_loop.problem import Problem, ProblemError, Rule, parse
from zeromodel.tasks.causal_loop.suites import SUITES
from zeromodel.tasks.causal_loop.templates import (
    HELD_OUT,
    TEMPLATES,
    TRAIN,
    chat_prompt,
    parse_text,
    plain_prompt,
    render,
    statement,
)

NUMBERS = st.integers(0, 999)  # also numbers that are not reduced
PARTS = [
    "A",
    "B=?",
    "7",
    " ",
    "\n",
    ". ",
    ", ",
    "; ",
    "\n- ",
    "%",
    "mod ",
    "and",
    "is",
    "лЮ٣",
    "\x00",
    "{left}",
    "\\",
    "9" * 5000,
]


@st.composite
def problems(draw) -> Problem:
    """Any valid problem: constants, seeds and rules of every form over any names, in any order,
    settling or not.
    """
    names = draw(st.lists(st.sampled_from(ascii_uppercase), min_size=1, max_size=10, unique=True))
    kinds = ["constant"] + [
        draw(st.sampled_from(["constant", "seed", "rule", "rule"])) for _ in names[1:]
    ]
    if draw(st.booleans()):
        kinds[0] = "seed"
    known, rules = [v for v, kind in zip(names, kinds, strict=True) if kind != "rule"], []

    def expression(target: str, readable: list[str]) -> Rule:
        operator, variable = draw(st.sampled_from("+-*%")), st.sampled_from(readable)
        right = draw(st.integers(1, 999)) if operator == "%" else draw(NUMBERS | variable)
        return Rule(target, draw(variable), operator, right)

    for v, kind in zip(names, kinds, strict=True):
        if kind != "rule":
            rules.append(Rule(v, draw(NUMBERS)))
        if kind == "seed":
            rules.append(expression(v, names))
        if kind == "rule":
            rules.append(expression(v, known))
            known.append(v)
    query = draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True))
    return Problem(
        draw(st.integers(2, 400)),
        tuple(draw(st.permutations(rules))),
        tuple(query),
        draw(st.none() | st.integers(0, 300)),
    )


@settings(max_examples=400, deadline=None, derandomize=True)
@given(problems())
def test_there_and_back(problem):
    assert parse_text(str(problem)) == (problem, None)
    for template in TEMPLATES.values():
        text = render(problem, template)
        assert parse_text(text) == (problem, template)
        assert (
            render(problem, template)
            == text
            == statement(plain_prompt(text))
            == statement(chat_prompt(text))
        )


def test_there_and_back_on_generated_problems():
    for suite in SUITES.values():
        for _, problem in draw_problems(suite, "train", {1: 1, 2: 1, 3: 1, 4: 1}, 300, seed=1):
            assert parse_text(str(problem)).problem == problem
            for template in TEMPLATES.values():
                assert parse_text(render(problem, template)) == (problem, template)


def checked(text: str):
    """A text is either refused with a `ProblemError` or is exactly what its content is written
    as.
    """
    try:
        problem, template = parse_text(text)
    except ProblemError as e:
        assert 10 < len(str(e)) < 400 and str(e).isprintable()  # one line
    else:
        assert text == (render(problem, template) if template else str(problem))


@settings(max_examples=400, deadline=None, derandomize=True)
@given(problems(), st.sampled_from([None, *TEMPLATES.values()]), st.data())
def test_changed_text_is_refused_or_means_what_it_says(problem, template, data):
    text = render(problem, template) if template else str(problem)
    for _ in range(data.draw(st.integers(1, 3))):
        i, j = sorted(data.draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
        text = data.draw(
            st.sampled_from(
                [
                    text[:i]
                    + data.draw(st.sampled_from(PARTS) | st.characters())
                    + text[i:],  # put in
                    text[:i] + text[min(j, i + 5) :],  # left out
                    text[:j] + text[i:],  # said twice
                    text[:i]
                    + data.draw(st.sampled_from(ascii_uppercase + "0123456789"))
                    + text[i + 1 :],
                ]
            )
        )
        checked(text)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.text()
    | st.lists(
        st.sampled_from(
            [*PARTS, *(t.opening.format(modulus=5, largest=4) for t in TEMPLATES.values())]
        )
    ).map("".join)
)
def test_any_text_at_all(text):
    checked(text)


@pytest.mark.parametrize(
    "text, why",
    [
        ("", "expected 'mod M."),
        ("mod 5", "expected 'mod M."),
        ("mod 5. A=1; B=?", "B has no rule"),
        ("mod 5. A=B+1, B=A+1; A=?", "no initial value for a loop"),
        ("mod 1. A=1; A=?", "must be at least 2"),
        ("mod 5. A=1, A=2; A=?", "already has a rule"),
        ("mod 5. A=1, B=A%0; B=?", "positive number"),
        ("mod 05. A=1; A=?", "leading zeros"),
        ("mod 5. A=1; 03| A=?", "leading zeros"),
        ("mod 5. A=1; A=? A=?", "twice"),
        ("mod 5. A=1;  A=?", "query ''"),
        ("mod 5. A=1; A=?\n", "one line of plain characters"),
        ("mod 5. A=" + "1" * 6000 + "; A=?", "at most 9 digits"),
        ("mod 5. A=٣; A=?", "rule 'A=٣'"),
        ("mod 5. a=1; a=?", "query 'a=?'"),
    ],
)
def test_malformed_text_is_named(text, why):
    with pytest.raises(ProblemError) as e:
        parse_text(text)
    assert why in str(e.value)


def test_templates_differ_and_some_are_held_out():
    assert (
        len(TRAIN) >= 4
        and len(HELD_OUT) >= 2
        and not set(TRAIN) & set(HELD_OUT)
        and {*TRAIN, *HELD_OUT} == set(TEMPLATES)
    )
    problem = parse("mod 17. A=3, B=A+2, C=B-A, D=C*C, A=D%5, E=1; D=? E=?")
    texts = [render(problem, t) for t in TEMPLATES.values()]
    lines = [
        {t.line(operator, seed) for operator in ("", *"+-*%") for seed in (False, True)}
        for t in TEMPLATES.values()
    ]
    assert len(set(texts)) == len(texts)
    assert all(
        len(own) == 10 and not any(t.separator in line for line in own)
        for own, t in zip(lines, TEMPLATES.values(), strict=True)
    )
    # no line is worded the same twice
    assert not any(a & b for i, a in enumerate(lines) for b in lines[:i])
