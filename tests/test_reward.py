"""The reward under attack: random responses, judged by a second scorer that shares nothing with
the first.
"""

import os
import random
import re
import subprocess
import sys
from collections import Counter

import pytest

from zeromodel.tasks.causal_loop.generator.stream import problems
from zeromodel.tasks.causal_loop.problem import settle
from zeromodel.tasks.causal_loop.reward import MAX_LENGTH, causal_loop_reward, compute_score
from zeromodel.tasks.causal_loop.suites import SUITES
from zeromodel.tasks.causal_loop.templates import (
    INSTRUCTION,
    TEMPLATES,
    chat_prompt,
    ideal_response,
    plain_prompt,
    render,
)

TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
SPACES = [
    "",
    " ",
    "\n",
    "\r\n",
    "\r",
    "\t",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x1f",
    "\x85",
    "\xa0",
    "\u1680",
    "\u2003",
    "\u2028",
    "\u2029",
    "\u202f",
    "\u3000",
    " \n\t ",
]
FOREIGN = ["٤", "４", "४", "𝟒", "⁴", "₄", "④", "Ⅳ", "四", "½", "\u0664\u0664"]
HIDDEN = ["\x00", "\u200b", "\ufeff", "\xad", "\u202e", "\u2060", "\ud800", "\x1b[0m"]
NEARLY = [
    "<Answer>",
    "<ANSWER>",
    "<answer >",
    "< answer>",
    "<answer/>",
    "<answer",
    "answer>",
    "</ answer>",
    "</answer",
    "<<answer>",
    "<answer>>",
    "</think",
    "<\\think>",
    "＜answer＞",
    "&lt;answer&gt;",
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "[/INST]",
    "\nassistant\n",
    "\\boxed{4}",
    "#### 4",
    "```python\n",
    "<!--",
    "-->",
    "<![CDATA[",
]
CODE = [
    "__import__('os').system('true')",
    "2+2",
    "{ground_truth}",
    "%s",
    "lambda: 4",
    "int('4')",
    "range(17)",
    "4 if True else 5",
    "float('nan')",
    "1e400",
    "0b100",
    "None",
    "True",
    "self",
    "../../4",
    "$(echo 4)",
    "'; --",
]
NUMBERS = [
    "0",
    "1",
    "4",
    "04",
    "000004",
    "0000004",
    "-4",
    "-0",
    "+4",
    "--4",
    "- 4",
    "4.",
    "4.0",
    ".4",
    "4e0",
    "0x4",
    "4_0",
    "1,000",
    "21",
    "999999",
    "1000000",
    "9" * 400,
    "9" * 6000,
    "3",
    "16",
    "17",
    "A=4",
    "A=1, B=2",
    "B=2,A=1",
    "A=1",
    "A=1, B=2, C=3",
    "A=1 , B = 2",
]
PARTS = [
    *TAGS * 6,
    *SPACES,
    *FOREIGN,
    *HIDDEN,
    *NEARLY,
    *CODE,
    *NUMBERS * 2,
    "A",
    "B",
    "=",
    ",",
    ", ",
    "A=",
    "B=",
    "So the answer is ",
    "A=1 B=3 | A=2 B=4",
    INSTRUCTION,
]
TRUTHS = ["4", "0", "16", "A=1, B=2"]


def second_opinion(response: str, truth: str) -> float:
    """What the rules say, read off one character or one tag after the other."""
    if len(response) > MAX_LENGTH:
        return 0.0
    pieces = re.split("(</think>|<answer>|</answer>)", response)
    if "</think>" not in pieces:
        return 0.0
    tail = pieces[len(pieces) - pieces[::-1].index("</think>") :]
    if [p for p in tail if p in TAGS[2:]] != ["<answer>", "</answer>"]:
        return 0.0
    inside = tail[2]  # text, tag, text, tag, text

    def trimmed(text):
        keep = [i for i, c in enumerate(text) if not c.isspace()]
        return text[keep[0] : keep[-1] + 1] if keep else ""

    def number(text):
        digits = text[1:] if text[:1] == "-" else text
        if not 1 <= len(digits) <= 6 or set(digits) - set("0123456789"):
            return None
        return sum("0123456789".index(c) * 10**i for i, c in enumerate(reversed(digits))) * (
            -1 if text[:1] == "-" else 1
        )

    def pairs(text):
        return [tuple(trimmed(x) for x in item.split("=")) for item in trimmed(text).split(",")]

    if "=" not in truth:
        return float(number(trimmed(inside)) == int(truth))
    wanted = sorted((name, int(x)) for name, x in pairs(truth))
    return float(
        all(len(p) == 2 and number(p[1]) is not None for p in pairs(inside))
        and sorted((p[0], number(p[1])) for p in pairs(inside)) == wanted
    )


class Attacker:
    """Random responses of several kinds: right ones in many forms, damaged ones, and whatever
    can be put together from parts.
    """

    def __init__(self, seed: int):
        self.rng = random.Random(seed)

    def space(self):
        return "".join(self.rng.choices(SPACES, k=self.rng.randrange(3)))

    def thought(self):
        return (
            "<think>" * self.rng.randrange(2)
            + "".join(self.rng.choices(PARTS, k=self.rng.randrange(8)))
            + "</think>"
        )

    def written(self, truth: str) -> str:
        """A right answer, in one of the ways in which it may be written."""

        def zeros(x):
            return "0" * self.rng.randrange(0, 7 - len(x)) + x

        if "=" not in truth:
            return zeros(truth)
        items = [
            self.space().join((*item.partition("=")[:2], zeros(item[2:])))
            for item in self.rng.sample(truth.split(", "), 2)
        ]
        return f"{self.space()},{self.space()}".join(items)

    def correct(self, truth: str) -> str:
        words = self.rng.choice(
            ["", "So it is", "The answer: ", "4", "<think>", "\x00", "𝟒", "A=1", "٤"]
        )
        before, inside, after = (self.space() for _ in range(3))
        answer = f"<answer>{inside}{self.written(truth)}{self.space()}</answer>"
        return f"{self.thought()}{before}{words}{answer}{after}{words}"

    def parts(self, truth: str) -> str:
        return "".join(
            self.rng.choices(
                [
                    *PARTS,
                    truth,
                    truth,
                    f"<answer>{truth}</answer>",
                    f"</think><answer>{truth}</answer>",
                ],
                k=self.rng.randrange(1, 12),
            )
        )

    def damaged(self, truth: str) -> str:
        text = self.correct(truth)
        for _ in range(self.rng.randint(1, 3)):
            i, j = sorted((self.rng.randrange(len(text) + 1), self.rng.randrange(len(text) + 1)))
            kind = self.rng.randrange(5)
            text = (
                text[:i] + self.rng.choice(PARTS) + text[i:],
                text[:i] + text[i + 1 :],
                text[:j] + text[i:],
                text[:i] + self.rng.choice("0123456789<>/=, \x00٤") + text[i + 1 :],
                text[:i] + text[j:],
            )[kind]
        return text

    def inside(self, truth: str) -> str:
        """Anything at all between well-placed tags."""
        parts = self.rng.choices([*PARTS, truth], k=self.rng.randrange(1, 4))
        return f"{self.thought()}<answer>{''.join(parts)}</answer>"

    def newlines(self, truth: str) -> str:
        return self.correct(truth).replace(" ", self.rng.choice(SPACES[2:]))

    def long(self, truth: str) -> str:
        n = self.rng.choice([1000, 30_000, MAX_LENGTH - 40, MAX_LENGTH, 2 * MAX_LENGTH])
        part = self.rng.choice([*TAGS, " ", "9", "A=1,", "x", "\x00", "<answer"])
        return (
            self.rng.choice(["", "</think><answer>"])
            + part * (n // len(part))
            + self.rng.choice(["", "</think>", "</answer>", f"</think><answer>{truth}</answer>"])
        )


def test_a_hundred_thousand_attacks(capsys):
    attacker, counts, state = Attacker(0), Counter(), random.getstate()
    prompts = [
        plain_prompt(render(p, t))
        for t in TEMPLATES.values()
        for _, p in problems(SUITES["nano"], "train", {1: 1, 2: 1}, 4, seed=1)
    ]
    prompts += [
        "".join(
            f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n"
            for m in chat_prompt(p.removesuffix(plain_prompt("")))
        )
        + "<|im_start|>assistant\n"
        for p in prompts
    ]
    for kind, n in {
        "correct": 25_000,
        "parts": 30_000,
        "damaged": 30_000,
        "inside": 20_000,
        "newlines": 5_000,
        "long": 300,
    }.items():
        for _ in range(n):
            truth = attacker.rng.choice(TRUTHS)
            response = getattr(attacker, kind)(truth)
            result, expected = (
                compute_score("causal_loop", response, truth),
                second_opinion(response, truth),
            )
            assert result["score"] == result["acc"] == expected <= result["formatted"] and list(
                result
            ) == ["score", "acc", "formatted"], (kind, truth, response[:300])
            if kind == "correct":
                assert expected == 1.0, (truth, response)
            prompt = attacker.rng.choice(prompts)
            if not MAX_LENGTH - len(prompt) < len(response) <= MAX_LENGTH:
                assert compute_score("causal_loop", prompt + response, truth) == result, (
                    kind,
                    truth,
                    prompt,
                    response[:300],
                )
            counts[kind, expected] += 1
    assert counts.total() >= 110_000
    # not a test of one thing only
    assert all(
        counts[kind, score] > 200 for kind in ("parts", "damaged", "inside") for score in (0.0, 1.0)
    ), counts
    assert capsys.readouterr() == ("", "") and random.getstate() == state


def test_generated_problems_are_paid_for_their_answers_only():
    for suite in SUITES.values():
        for _, p in problems(suite, "test", {1: 1, 2: 1, 3: 1, 4: 1}, 200, seed=2):
            values = settle(p).values
            truth = {v: values[v] for v in p.query}
            wrong = {v: (x + (i == 0)) % suite.modulus for i, (v, x) in enumerate(truth.items())}
            assert (
                compute_score("", ideal_response(p), truth)["score"] == 1
                and compute_score("", ideal_response(p), wrong)["score"] == 0
            )


@pytest.mark.parametrize(
    "response", [None, 4, 4.0, b"</think><answer>4</answer>", [], {}, float("nan"), object()]
)
def test_not_a_text(response):
    assert compute_score("", response, 4) == {"score": 0.0, "acc": 0.0, "formatted": 0.0}
    assert causal_loop_reward(
        completions=[[{"role": "assistant", "content": response}]], ground_truth=[4]
    ) == [0.0]


def test_conventions():
    right = "<think>A=1</think><answer>4</answer>"
    assert (
        compute_score(
            data_source="causal_loop",
            solution_str=right,
            ground_truth="4",
            extra_info={"index": 0},
            sandbox_fusion_url=None,
            reward_router_address=None,
        )["score"]
        == 1
    )
    assert compute_score("", right, 5, format_bonus=0.2) == {
        "score": 0.2,
        "acc": 0.0,
        "formatted": 1.0,
    }
    assert compute_score("", right, 4, format_bonus=0.2)["score"] == 1
    with pytest.raises(ValueError, match="format_bonus=1"):
        compute_score("", right, 4, format_bonus=1)
    with pytest.raises(ValueError, match="ground truth 'A=1, A=2'"):
        compute_score("", right, "A=1, A=2")
    assert (
        compute_score("", "<answer>4</answer>", 4)["score"] == 0
        and compute_score("", "<answer>4</answer>", 4, require_think=False)["score"] == 1
    )
    messages = [{"role": "assistant", "content": right}]
    assert causal_loop_reward(
        prompts=["?"] * 2,
        completions=[messages, messages],
        completion_ids=[[1], [2]],
        ground_truth=["4", "3"],
        trainer_state=None,
    ) == [1.0, 0.0]
    with pytest.raises(ValueError):
        causal_loop_reward(completions=[right], ground_truth=["4", "4"])


def test_stands_alone():
    """A reward worker imports nothing heavy with it."""
    code = (
        "import sys, zeromodel.tasks.causal_loop.reward;"
        " heavy = ('torch', 'transformers', 'numpy', 'datasets');"
        " print([m for m in heavy if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ
        ).stdout.strip()
        == "[]"
    )
