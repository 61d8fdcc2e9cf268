"""The simplest generator: draw a problem in plain Python, check whether it is wanted, else draw
again. `generator.py` compares the fast generator with it.
"""

import contextlib
import random
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise, product

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
    """A random number that changes something."""
    return rng.randrange(2 if operator in "*%" else 1, m)


def chain_problem(rng: random.Random, suite: Suite, level: int, depth: int) -> Problem | None:
    """Levels 1 and 3; None when this draw is not what is wanted."""
    m = suite.modulus
    names = rng.sample(suite.names, suite.num_vars)
    lengths = [depth + 1] + [1] * (suite.num_chains - 1)
    for _ in range(suite.num_vars - sum(lengths)):
        lengths[rng.randrange(len(lengths))] += 1
    chains = [c for c, n in enumerate(lengths) for _ in range(n)]
    rng.shuffle(chains)
    own = [i for i, c in enumerate(chains) if c == 0]
    if suite.apart and own[depth] - own[0] == depth:
        return None
    rules, depth_of, tails = [], {}, {}
    for name, chain in zip(names, chains, strict=True):
        left = tails.get(chain)
        tails[chain] = name
        if left is None:
            rules.append(Rule(name, rng.randrange(m)))
            depth_of[name] = 0
            continue
        operator = rng.choice(suite.operators)
        partners = []
        if level == 3:
            partners = [v for v, k in depth_of.items() if v != left and k <= depth_of[left]]
        if partners and rng.random() < 0.5:
            right = rng.choice(partners)
        else:
            right = number(rng, operator, m)
        rules.append(Rule(name, left, operator, right))
        depth_of[name] = depth_of[left] + 1
    asked = names[own[depth]]
    problem = Problem(m, tuple(rules), (asked,))
    needed = relevant(problem, (asked,))
    path = [r for r in rules if r.operator and r.target in needed]
    if level == 3:
        return problem if any(len(r.reads) == 2 for r in path) else None
    products = [r.operator == "*" for r in path]
    changes = sum(a != b for a, b in pairwise(products))
    return problem if changes >= min(depth - 1, 2) else None


def loop_rules(rng: random.Random, suite: Suite, names: list[str], seeds: int) -> list[Rule]:
    """The rules of a loop with one seed or two, without the initial values."""
    m = suite.modulus

    def additive(target, reads):
        operator = rng.choice("+-")
        return Rule(target, reads, operator, number(rng, operator, m))

    def any_rule(target, reads):
        operator = rng.choice(suite.operators)
        return Rule(target, reads, operator, number(rng, operator, m))

    def squeeze(target, reads):
        if rng.random() < 0.5:
            return Rule(target, reads, "*", reads)
        return Rule(target, reads, "%", number(rng, "%", m))

    fresh = iter(names[seeds:])
    rules = [additive(next(fresh), seed) for seed in names[:seeds]]
    if seeds == 2:
        join = next(fresh)
        rules.append(Rule(join, rules[0].target, "*", rules[1].target))
    chain = [squeeze] + [any_rule] * rng.randrange(1 + seeds)
    rng.shuffle(chain)
    for draw in chain:
        rules.append(draw(next(fresh), rules[-1].target))
    rules.append(additive(names[0], rules[-1].target))
    if seeds == 2:
        addend = next(fresh)
        rules.append(additive(addend, join))
        rules.append(Rule(names[1], names[1], rng.choice("+-"), addend))
    return rules


def loop_problem(rng: random.Random, suite: Suite, level: int, tau: int) -> Problem | None:
    """Levels 2 and 4; None when this draw is not what is wanted."""
    m, seeds = suite.modulus, level // 2
    names = rng.sample(suite.names, suite.num_vars)
    loop = loop_rules(rng, suite, names, seeds)
    used = len(loop)  # a recurrence has no variable of its own, but each seed has one
    asked, operator = names[used], rng.choice(suite.operators)
    rest = [
        Rule(asked, rng.choice(names[:seeds]), operator, number(rng, operator, m)),
        Rule(names[used + 1], rng.randrange(m)),
    ]
    for i in range(used + 2, suite.num_vars):
        left, operator = rng.choice(names[:i]), rng.choice(suite.operators)
        rest.append(Rule(names[i], left, operator, number(rng, operator, m)))
    ends = []  # (settling time, values of the seeds at the end, problem), by start
    for start in product(range(m), repeat=seeds):
        initial = [Rule(v, x) for v, x in zip(names[:seeds], start, strict=True)]
        problem = Problem(m, (*initial, *loop, *rest), (asked,))
        with contextlib.suppress(NeverSettles):
            settled = settle(problem)
            ends.append((settled.tau, tuple(settled.values[v] for v in names[:seeds]), problem))
    basins = Counter(end for _, end, _ in ends)
    fitting = [(end, problem) for t, end, problem in ends if t == tau]
    if len(basins) < 2 or not fitting:
        return None
    outside = [problem for end, problem in fitting if basins[end] < max(basins.values())]
    if outside and rng.random() < 0.5:
        return rng.choice(outside)
    return rng.choice([problem for _, problem in fitting])


def has_held_out_pair(problem: Problem, suite: Suite) -> bool:
    """Whether some rule applies the second operator of the held-out pair to a result of the
    first.
    """
    rules = problem.definitions.values()
    return any(
        first.operator + second.operator == suite.held_out_pair
        for first in rules
        for second in rules
        if first.target in second.reads
    )


def naive_problems(
    suite: Suite,
    split: str,
    level: int,
    n: int,
    *,
    seed: int,
    distinct: bool,
    seconds: float = 30.0,
) -> Iterator[Problem]:
    """`n` problems, difficulties in turn; as many as come within `seconds`."""
    rng, steps, seen = random.Random(seed), difficulties(suite, level), set()
    draw = chain_problem if level in (1, 3) else loop_problem
    end, made = time.monotonic() + seconds, 0
    while made < n and time.monotonic() < end:
        problem = draw(rng, suite, level, steps[made % len(steps)])
        if problem is None or splits_of(problem, suite) != {split}:
            continue
        if has_held_out_pair(problem, suite):
            continue
        if distinct:
            hash_ = canonical_hash(problem)
            if hash_ in seen:
                continue
            seen.add(hash_)
        made += 1
        rules = rng.sample(problem.rules, len(problem.rules))
        yield Problem(problem.modulus, tuple(rules), problem.query)
