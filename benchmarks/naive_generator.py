"""The generator as one would write it first: draw a problem in plain Python, look whether it is
wanted, draw again. The peer of `zeromodel.tasks.causal_loop.generator.stream`.
"""

import contextlib
import random
import time
from collections import Counter
from itertools import product

from zeromodel.tasks.causal_loop.problem import (
    NeverSettles,
    Problem,
    Rule,
    canonical_hash,
    relevant,
    settle,
)
from zeromodel.tasks.causal_loop.suites import Suite, difficulties, splits_of


def number(rng: random.Random, operator: str, m: int) -> int:
    return rng.randrange(2 if operator in "*%" else 1, m)


def chain_problem(rng: random.Random, suite: Suite, level: int, depth: int) -> Problem | None:
    """Levels 1 and 3; None when this draw is not what is wanted."""
    m, names = suite.modulus, rng.sample(suite.names, suite.num_vars)
    lengths = [depth + 1] + [1] * (suite.num_chains - 1)
    for _ in range(suite.num_vars - sum(lengths)):
        lengths[rng.randrange(len(lengths))] += 1
    chains = [c for c, n in enumerate(lengths) for _ in range(n)]
    rng.shuffle(chains)
    own, rules, level_of, tails = [i for i, c in enumerate(chains) if c == 0], [], {}, {}
    if suite.apart and own[depth] - own[0] == depth:
        return None
    for name, chain in zip(names, chains, strict=True):
        left = tails.get(chain)
        tails[chain] = name
        if left is None:
            rules.append(Rule(name, rng.randrange(m)))
            level_of[name] = 0
            continue
        operator = rng.choice(suite.operators)
        partners = (
            [v for v, k in level_of.items() if v != left and k <= level_of[left]]
            if level == 3
            else []
        )
        rules.append(
            Rule(
                name,
                left,
                operator,
                (
                    rng.choice(partners)
                    if partners and rng.random() < 0.5
                    else number(rng, operator, m)
                ),
            )
        )
        level_of[name] = level_of[left] + 1
    asked = names[own[depth]]
    problem = Problem(m, tuple(rules), (asked,))
    needed = relevant(problem, (asked,))
    path = [r for r in rules if r.operator and r.target in needed]
    kinds = [r.operator == "*" for r in path]
    if level == 1 and sum(a != b for a, b in zip(kinds, kinds[1:], strict=False)) < min(
        depth - 1, 2
    ):
        return None
    return None if level == 3 and not any(len(r.reads) == 2 for r in path) else problem


def loop_rules(rng: random.Random, suite: Suite, names: list[str], seeds: int) -> list[Rule]:
    """The rules of a loop with one seed or two, without the initial values."""
    m, additive = (
        suite.modulus,
        lambda target, reads: Rule(target, reads, op := rng.choice("+-"), number(rng, op, m)),
    )

    def any_rule(target, reads):
        return Rule(target, reads, op := rng.choice(suite.operators), number(rng, op, m))

    def squeeze(target, reads):
        return (
            Rule(target, reads, "*", reads)
            if rng.random() < 0.5
            else Rule(target, reads, "%", number(rng, "%", m))
        )

    fresh = iter(names[seeds:])
    rules = [additive(next(fresh), seed) for seed in names[:seeds]]
    if seeds == 2:
        rules.append(Rule(join := next(fresh), rules[0].target, "*", rules[1].target))
    chain = [squeeze] + [any_rule] * (rng.randrange(2) if seeds == 1 else rng.randrange(3))
    rng.shuffle(chain)
    for draw in chain:
        rules.append(draw(next(fresh), rules[-1].target))
    rules.append(additive(names[0], rules[-1].target))
    if seeds == 2:
        rules += [
            additive(addend := next(fresh), join),
            Rule(names[1], names[1], rng.choice("+-"), addend),
        ]
    return rules


def loop_problem(rng: random.Random, suite: Suite, level: int, tau: int) -> Problem | None:
    """Levels 2 and 4; None when this draw is not what is wanted."""
    m, seeds = suite.modulus, level // 2
    names = rng.sample(suite.names, suite.num_vars)
    loop = loop_rules(rng, suite, names, seeds)
    used = seeds + len(loop) - seeds
    asked, operator = names[used], rng.choice(suite.operators)
    rest = [
        Rule(asked, rng.choice(names[:seeds]), operator, number(rng, operator, m)),
        Rule(names[used + 1], rng.randrange(m)),
    ]
    for i in range(used + 2, suite.num_vars):
        rest.append(
            Rule(
                names[i],
                rng.choice(names[:i]),
                op := rng.choice(suite.operators),
                number(rng, op, m),
            )
        )
    ends = {}
    for start in product(range(m), repeat=seeds):
        problem = Problem(
            m, (*(Rule(v, x) for v, x in zip(names, start, strict=True)), *loop, *rest), (asked,)
        )
        with contextlib.suppress(NeverSettles):
            ends[start] = (
                settle(problem).tau,
                tuple(settle(problem).values[v] for v in names[:seeds]),
                problem,
            )
    basins = Counter(end for _, end, _ in ends.values())
    fitting = [(end, problem) for t, end, problem in ends.values() if t == tau]
    if len(basins) < 2 or not fitting:
        return None
    outside = [problem for end, problem in fitting if basins[end] < max(basins.values())]
    return rng.choice(
        outside if outside and rng.random() < 0.5 else [problem for _, problem in fitting]
    )


def naive_problems(
    suite: Suite, split: str, level: int, n: int, seed: int, distinct: bool, seconds: float = 30.0
):
    """`n` problems, difficulties in turn; as many as come within `seconds`."""
    rng, steps, seen, end = (
        random.Random(seed),
        difficulties(suite, level),
        set(),
        time.monotonic() + seconds,
    )
    for i in range(n):
        while True:
            if time.monotonic() > end:
                return
            problem = (chain_problem if level in (1, 3) else loop_problem)(
                rng, suite, level, steps[i % len(steps)]
            )
            if problem is None or splits_of(problem, suite) != {split}:
                continue
            if any(
                p.operator + q.operator == suite.held_out_pair
                for p in problem.definitions.values()
                for q in problem.definitions.values()
                if p.target in q.reads
            ):
                continue
            if not distinct or (h := canonical_hash(problem)) not in seen:
                break
        if distinct:
            seen.add(h)
        yield Problem(
            problem.modulus, tuple(rng.sample(problem.rules, len(problem.rules))), problem.query
        )
