"""The statistics without torch and pandas, against references and scipy, and on unusual input."""

import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from zeromodel.evaluation.statistical_tests import (
    StatisticalReport,
    bootstrap_ci,
    crossed_bootstrap,
    crossed_t_interval,
    equal_accuracy_ratio,
    max_t,
    minimum_detectable_effect,
    multiple_comparison_correction,
    paired_comparison,
    power_analysis,
    power_curve,
    sign_flip_p,
    t_interval,
    variance_components,
    wilcoxon_p,
)

pytestmark = pytest.mark.filterwarnings("ignore:(bca|percentile) interval", "ignore:Precision loss")
A, B = [0.72, 0.75, 0.71, 0.73, 0.74], [0.81, 0.83, 0.79, 0.82, 0.80]

score = st.integers(0, 1000).map(lambda k: k / 1000)
pairs = st.lists(st.tuples(score, score), min_size=3, max_size=24)
p_list = st.lists(st.floats(0, 1), min_size=1, max_size=20)
quick = settings(max_examples=80, deadline=None, derandomize=True)


# ---------------------------------------------------------------- dependencies


def test_needs_neither_torch_nor_pandas():
    """It is imported and used while the import of every heavy package is refused."""
    code = """
import sys
REFUSED = ('torch', 'pandas', 'transformers', 'matplotlib', 'fastcore', 'sklearn')
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in REFUSED:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from zeromodel.evaluation.statistical_tests import *
report = StatisticalReport([.72, .75, .71, .73, .74]).add_comparison('x', [.81, .83, .79, .82, .80])
assert 'supported' in report.generate() and report.to_latex() and report.to_dict()
assert not {'torch', 'pandas'} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


DOCUMENT = """
from verl.utils.statistical_tests import (
    paired_comparison,
    bootstrap_ci,
    multiple_comparison_correction,
    StatisticalReport,
    power_analysis,
)
import numpy as np

baseline_scores = np.array([0.72, 0.75, 0.71, 0.73, 0.74])  # 5 seeds
mla_lru_scores = np.array([0.81, 0.83, 0.79, 0.82, 0.80])

result = paired_comparison(baseline_scores, mla_lru_scores, test_type="auto")
print(f"P-value: {result.p_value:.6f}")
print(f"Effect size (Cohen's d): {result.effect_size:.3f}")
print(f"Significant: {result.significant}")

ci = bootstrap_ci(mla_lru_scores, confidence_level=0.95)
print(f"95% CI: [{ci.lower:.4f}, {ci.upper:.4f}]")

p_values = [0.01, 0.03, 0.04, 0.08]
adjusted_p, significant = multiple_comparison_correction(
    p_values, method="holm", alpha=0.05
)
print(f"Adjusted p-values: {adjusted_p}")
print(f"Significant: {significant}")

report = StatisticalReport(baseline_scores, baseline_name="baseline")
report.add_comparison("mla_lru", mla_lru_scores)
print(report.generate())

print(report.to_latex())

power = power_analysis(effect_size=0.5, alpha=0.05, power=0.8)
print(f"Required sample size: {power['required_n']}")
"""


def test_the_documents_example_runs_with_only_the_import_changed(capsys):
    exec(
        DOCUMENT.replace("verl.utils.statistical_tests", "zeromodel.evaluation.statistical_tests"),
        {},
    )
    out = capsys.readouterr().out
    for line in (
        "P-value: 0.000128",
        "Effect size (Cohen's d): 6.532",
        "Significant: True",
        "Adjusted p-values: [0.04 0.09 0.09 0.09]",
        "Significant: [ True False False False]",
        r"mla\_lru",
        "Required sample size: 34",
    ):
        assert line in out


# ---------------------------------------------------------------- the reference cases


def test_reference_comparison():
    r = paired_comparison(A, B)
    found = [
        r.difference,
        r.p_t,
        r.lower,
        r.upper,
        r.p_wilcoxon,
        r.p_flip,
        r.min_attainable_p,
        r.d_z,
        r.d_av,
        r.g_av,
        r.rank_biserial,
    ]
    assert found == pytest.approx(
        [
            0.08,
            1.27815e-4,
            0.0647928,
            0.0952072,
            0.0625,
            0.0625,
            0.0625,
            6.531973,
            5.059644,
            4.037012,
            1,
        ],
        rel=2e-6,
    )
    assert stats.t.isf(r.p_t / 2, 4) == pytest.approx(14.605935)
    assert (r.test, r.effect_size, r.effect_size_name, r.significant, r.n, r.n_dropped) == (
        "t",
        r.d_z,
        "d_z",
        True,
        5,
        0,
    )


@pytest.mark.parametrize(
    "method, expected",
    [
        ("bonferroni", [0.04, 0.12, 0.16, 0.32]),
        ("holm", [0.04, 0.09, 0.09, 0.09]),
        ("bh", [0.04, 0.053333, 0.053333, 0.08]),
    ],
)
def test_reference_corrections(method, expected):
    assert multiple_comparison_correction([0.01, 0.03, 0.04, 0.08], method=method)[
        0
    ] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("paired, exact, required", [(True, 33.367, 34), (False, 63.766, 64)])
def test_reference_power(paired, exact, required):
    r = power_analysis(0.5, alpha=0.05, power=0.8, paired=paired)
    assert r["required_n"] == required and r["n_exact"] == pytest.approx(exact, abs=5e-4)
    assert r["achieved_power"] >= 0.8 > power_curve(0.5, required - 1, paired=paired)


def test_reference_ratio():
    r = equal_accuracy_ratio([1e5, 2e5, 4e5, 8e5], [0.5, 0.6, 0.7, 0.8], 2e5, 0.75)
    assert round(r.params_needed) == 565_685 and r.censored == ""
    assert r.ratio == pytest.approx(2.8284, abs=1e-4)


def test_a_ratio_beyond_the_curve_is_a_bound():
    sizes, dip = [1e5, 2e5, 4e5, 8e5], [0.5, 0.7, 0.6, 0.8]
    # the fit is .65 at 2e5 and 4e5
    assert equal_accuracy_ratio(sizes, dip, 2e5, 0.65).params_needed == pytest.approx(2e5)
    some = equal_accuracy_ratio(sizes, [dip] * 3, 2e5, [0.7, 0.75, 0.9])
    assert some.censored == ">" and some.upper == np.inf and 0 < some.lower < some.ratio < 4
    all_beyond = equal_accuracy_ratio(sizes, [dip] * 3, 2e5, [0.9] * 3)
    assert (all_beyond.ratio, all_beyond.censored) == (4, ">") and np.isnan(all_beyond.lower)
    assert str(all_beyond) == "> 4.00, 3 of 3 seeds beyond the curve"
    below = equal_accuracy_ratio(sizes, [dip] * 3, 2e5, [0.4, 0.4, 0.55])
    assert below.censored == "<" and below.lower == 0 and below.upper > below.ratio


def test_sixteen_contrasts_need_six_seeds_with_max_t_and_ten_with_holm():
    rng = np.random.default_rng(0)
    strong = {n: 5 + rng.normal(size=(n, 16)) for n in range(4, 12)}
    assert min(n for n, d in strong.items() if max_t(d)[1].any()) == 6
    assert (
        min(
            n
            for n, d in strong.items()
            if multiple_comparison_correction([sign_flip_p(x) for x in d.T])[1].any()
        )
        == 10
    )


def test_choice_of_test():
    rng = np.random.default_rng(0)
    chosen = {
        n: paired_comparison(np.zeros(n), rng.normal(size=n)).test for n in (3, 5, 6, 20, 21, 60)
    }
    assert chosen == {3: "t", 5: "t", 6: "permutation", 20: "permutation", 21: "t", 60: "t"}
    heavy = paired_comparison(np.zeros(30), rng.standard_cauchy(30))
    assert heavy.test == "wilcoxon" and heavy.p_value == heavy.p_wilcoxon
    assert "Shapiro" in heavy.reason


def test_only_small_bootstraps_warn():
    for method in ("bca", "percentile"):
        with pytest.warns(UserWarning, match="85%"):
            bootstrap_ci(A, method=method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bootstrap_ci(A, method="expanded")
        bootstrap_ci(np.arange(12.0))


# ---------------------------------------------------------------- properties


@quick
@given(pairs, st.randoms(use_true_random=False))
def test_order_of_the_seeds_does_not_matter(rows, random):
    shuffled = random.sample(rows, len(rows))
    one, other = (paired_comparison(*np.array(r).T) for r in (rows, shuffled))
    for field in (
        "difference",
        "lower",
        "upper",
        "p_t",
        "p_wilcoxon",
        "p_flip",
        "p_value",
        "effect_size",
        "g_av",
        "rank_biserial",
        "probability_of_improvement",
    ):
        assert getattr(one, field) == pytest.approx(getattr(other, field), abs=1e-9, nan_ok=True), (
            field
        )
    b = [bootstrap_ci(np.array(r)[:, 1], n_resamples=200, rng=1) for r in (rows, shuffled)]
    assert (b[0].lower, b[0].upper) == pytest.approx((b[1].lower, b[1].upper), abs=1e-12)


@quick
@given(pairs)
def test_exchanging_the_arms_changes_signs_only(rows):
    a, b = np.array(rows).T
    one, other = paired_comparison(a, b), paired_comparison(b, a)
    for field in ("p_t", "p_wilcoxon", "p_flip", "p_value"):
        assert getattr(one, field) == pytest.approx(getattr(other, field), abs=1e-12, nan_ok=True)
    for field in ("difference", "effect_size", "d_av", "g_av", "rank_biserial"):
        assert getattr(one, field) == pytest.approx(-getattr(other, field), abs=1e-9, nan_ok=True)
    assert (one.lower, one.upper) == pytest.approx((-other.upper, -other.lower), abs=1e-12)
    assert one.probability_of_improvement == pytest.approx(1 - other.probability_of_improvement)


@quick
@given(pairs)
def test_a_p_is_a_probability_and_the_interval_agrees_with_it(rows):
    a, b = np.array(rows).T
    r = paired_comparison(a, b)
    for p in (r.p_t, r.p_wilcoxon, r.p_flip, r.p_value):
        assert 0 <= p <= 1 or np.isnan(p)
    assert min(r.p_flip, r.p_wilcoxon) >= r.min_attainable_p
    assert r.lower <= r.difference + 1e-12 and r.difference <= r.upper + 1e-12
    assert -1 <= r.rank_biserial <= 1 and 0 <= r.probability_of_improvement <= 1
    if not np.isnan(r.p_t) and abs(r.p_t - 0.05) > 1e-6:
        assert (r.p_t < 0.05) == (not r.lower <= 0 <= r.upper)


@quick
@given(
    st.lists(score, min_size=1, max_size=12),
    st.sampled_from(["bca", "percentile", "basic", "expanded"]),
    st.sampled_from([0.8, 0.9, 0.95, 0.99]),
)
def test_bootstrap_intervals_contain_the_estimate_and_move_with_the_data(x, method, level):
    r = bootstrap_ci(x, level, method, n_resamples=400)
    assert r.lower - 1e-12 <= r.estimate <= r.upper + 1e-12
    if r.exact:
        moved = bootstrap_ci(np.array(x) + 7, level, method)
        negated = bootstrap_ci(-np.array(x), level, method)
        assert (moved.lower - 7, moved.upper - 7) == pytest.approx((r.lower, r.upper), abs=1e-9)
        assert (-negated.upper, -negated.lower) == pytest.approx((r.lower, r.upper), abs=1e-9)


@quick
@given(p_list, st.sampled_from(["holm", "bonferroni", "bh"]), st.data())
def test_corrections_raise_p_and_keep_its_order(p, method, data):
    adjusted, significant = multiple_comparison_correction(p, method)
    assert (adjusted >= np.array(p) - 1e-12).all() and (adjusted <= 1).all()
    assert (significant == (adjusted <= 0.05)).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= -1e-12).all()
    order = data.draw(st.permutations(range(len(p))))
    assert multiple_comparison_correction(np.array(p)[order], method)[0] == pytest.approx(
        adjusted[order]
    )
    with_nan, _ = multiple_comparison_correction([*p, np.nan], method)
    assert with_nan[:-1] == pytest.approx(adjusted) and np.isnan(with_nan[-1])
    bonferroni, holm, bh = (
        multiple_comparison_correction(p, m)[0] for m in ("bonferroni", "holm", "bh")
    )
    assert (bonferroni >= holm - 1e-12).all() and (holm >= bh - 1e-12).all()
    smaller = np.array(p)
    smaller[0] /= 2
    assert (multiple_comparison_correction(smaller, method)[0] <= adjusted + 1e-12).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(3, 8), st.integers(1, 5), st.integers(0, 10**6))
def test_max_t_p_is_never_below_the_p_of_the_single_test(n, m, seed):
    rng = np.random.default_rng(seed)
    d = rng.normal(rng.normal(0, 1, m), 1, (n, m)).round(1)
    p, single = max_t(d)[0], np.array([sign_flip_p(x) for x in d.T])
    assert (p >= single - 1e-9).all() and (p <= 1).all() and (p >= 2 / 2**n - 1e-12).all()
    rows, columns = rng.permutation(n), rng.permutation(m)
    for same in (d[rows], -d, d * 3):
        assert max_t(same)[0] == pytest.approx(p)
    assert max_t(d[:, columns])[0] == pytest.approx(p[columns])


@quick
@given(
    st.floats(0.05, 20),
    st.floats(0.5, 0.99),
    st.booleans(),
    st.sampled_from(["two-sided", "greater", "less"]),
)
def test_power_analysis_is_consistent(effect, power, paired, alternative):
    effect = -effect if alternative == "less" else effect
    r = power_analysis(effect, 0.05, power, paired, alternative)
    n = r["required_n"]

    def at(k):
        return power_curve(effect, k, 0.05, paired, alternative)

    assert r["achieved_power"] >= power - 1e-9 and (n == 2 or at(n - 1) < power)
    assert abs(r["mde"]) <= abs(effect) * (1 + 1e-9) and power_curve(
        r["mde"], n, 0.05, paired, alternative
    ) == pytest.approx(power)
    assert (
        np.diff(power_curve(np.linspace(0, 3, 20) * np.sign(effect), n, 0.05, paired, alternative))
        >= -1e-9
    ).all()
    assert (np.diff(at(np.arange(2, 60))) >= -1e-9).all()


@quick
@given(st.integers(1, 6), st.integers(2, 6), st.integers(0, 10**6))
def test_equal_accuracy_ratio_has_the_unit_of_its_sizes(seeds, k, seed):
    rng = np.random.default_rng(seed)
    sizes = np.sort(rng.uniform(1, 100, k)) + np.arange(k)
    curves, targets = rng.random((seeds, k)), rng.random(seeds)
    r, scaled = (equal_accuracy_ratio(c * sizes, curves, c * 7.0, targets) for c in (1, 1000))
    assert r.ratio_by_seed == pytest.approx(scaled.ratio_by_seed)
    assert r.censored_by_seed == scaled.censored_by_seed
    assert all(sizes[0] / 7 - 1e-9 <= x <= sizes[-1] / 7 + 1e-9 for x in r.ratio_by_seed)
    higher = equal_accuracy_ratio(sizes, curves, 7.0, targets + 0.1)
    assert all(a <= b + 1e-9 for a, b in zip(r.ratio_by_seed, higher.ratio_by_seed, strict=True))
    if np.isfinite(r.lower) and np.isfinite(r.upper):
        assert r.lower <= r.ratio * (1 + 1e-9) and r.ratio <= r.upper * (1 + 1e-9)


# ---------------------------------------------------------------- peers: scipy


@pytest.mark.parametrize("n", [3, 5, 8, 13, 20, 30, 40, 45, 80])
def test_agrees_with_scipy(n):
    rng = np.random.default_rng(n)
    for _ in range(5):
        a, b = rng.normal(0.7, 0.1, n), rng.normal(0.75, 0.1, n)
        r, t = paired_comparison(a, b), stats.ttest_rel(b, a)
        assert (r.p_t, r.lower, r.upper) == pytest.approx((t.pvalue, *t.confidence_interval()))
        assert r.p_wilcoxon == pytest.approx(stats.wilcoxon(b - a).pvalue, abs=1e-9)
        assert (r.lower, r.upper) == pytest.approx(t_interval(b - a))
        if n <= 13:
            assert r.p_flip == pytest.approx(
                stats.permutation_test(
                    (b - a,),
                    np.mean,
                    permutation_type="samples",
                    n_resamples=np.inf,
                    vectorized=False,
                ).pvalue
            )
        p = rng.random(n)
        assert multiple_comparison_correction(p, "bh")[0] == pytest.approx(
            stats.false_discovery_control(p)
        )


def test_ties_and_zeros_are_exact_where_scipy_approximates():
    d = np.array([1, 1, 1, 2, 2, -1, 3, 3, -2, 4, 1, 2, 0, 0, 5.0])
    kept = d[d != 0]
    exact = stats.permutation_test(
        (kept,),
        lambda x: (np.sign(x) * stats.rankdata(np.abs(x))).sum(),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=False,
    ).pvalue
    assert wilcoxon_p(d) == pytest.approx(exact)
    assert stats.wilcoxon(d).pvalue != pytest.approx(exact, rel=0.02)


def test_scipy_takes_rounding_errors_for_evidence():
    a = np.array([0.1, 0.2, 0.3, 0.4])
    assert stats.ttest_rel(a + 0.1, a).pvalue < 1e-30
    r = paired_comparison(a, a + 0.1)
    assert r.degenerate and not r.significant
    assert np.isnan(r.p_t) and np.isnan(r.d_z)
    assert r.p_flip == r.p_value == 0.125


def test_scipys_power_is_nan_where_ours_is_a_number():
    effects, critical = np.linspace(4, 40, 500), stats.t.isf(0.025, 4)
    noncentrality = effects * np.sqrt(5)
    upper, lower = (
        stats.nct.sf(critical, 4, noncentrality),
        stats.nct.cdf(-critical, 4, noncentrality),
    )
    assert np.isnan(upper + lower).any()
    assert power_curve(effects, 5) == pytest.approx(
        stats.ncf.sf(critical**2, 1, 4, 5 * effects**2), abs=1e-9
    )
    assert minimum_detectable_effect(1.0, 5, power=1 - 1e-9) > 4


def test_scipys_bca_depends_on_the_last_bit():
    """The bias is estimated from the share of resampled means below the mean.

    Whether equal means count as below is decided by rounding, unless ties are counted as ties.
    """
    x = np.arange(1, 10) / 10
    theirs = [
        stats.bootstrap(
            (y,), np.mean, method="BCa", n_resamples=20_000, rng=np.random.default_rng(1)
        ).confidence_interval.high
        for y in (x, x + 0.1)
    ]
    assert abs(theirs[1] - 0.1 - theirs[0]) > 0.01
    ours = [bootstrap_ci(y, n_resamples=20_000, rng=1).upper for y in (x, x + 0.1)]
    assert ours[1] - 0.1 == pytest.approx(ours[0], abs=1e-12)


def test_scipy_has_no_interval_of_equal_values():
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.isnan(stats.bootstrap(([0.3] * 4,), np.mean).confidence_interval.low)
    r = bootstrap_ci([0.3] * 4)
    assert r.degenerate and r.lower == r.upper == 0.3


# ---------------------------------------------------------------- error rates and coverage


@pytest.mark.parametrize("n, studies", [(3, 4000), (5, 4000), (10, 3000), (30, 1500)])
def test_type_one_error_is_within_a_point_of_nominal(n, studies):
    rng = np.random.default_rng(2024)
    a = rng.normal(0.7, 0.02, (studies, n))
    b = a + rng.normal(0, 0.03, (studies, n))
    rejected = [paired_comparison(x, y).significant for x, y in zip(a, b, strict=True)]
    assert abs(np.mean(rejected) - 0.05) <= 0.01, np.mean(rejected)


@pytest.mark.parametrize("n", [3, 5, 10, 30])
def test_coverage_of_the_recommended_interval(n):
    rng = np.random.default_rng(7)
    intervals = np.array([t_interval(x) for x in rng.normal(0.7, 0.05, (6000, n))])
    assert np.mean((intervals[:, 0] <= 0.7) & (intervals[:, 1] >= 0.7)) >= 0.94


def test_family_wise_error_of_max_t():
    rng = np.random.default_rng(3)
    any_false = []
    for _ in range(400):
        arms = rng.normal(size=(7, 9))
        any_false.append(max_t(arms[:, 1:] - arms[:, :1])[1].any())
    assert np.mean(any_false) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


# ---------------------------------------------------------------- unusual input

FORMS = [
    list,
    tuple,
    np.array,
    pd.Series,
    lambda x: pd.DataFrame({"score": x}),
    lambda x: np.array(x)[:, None],
]


@pytest.mark.parametrize("form", FORMS)
def test_lists_arrays_series_and_tables_are_the_same(form):
    assert paired_comparison(form(A), form(B)) == paired_comparison(A, B)
    assert bootstrap_ci(form(B)) == bootstrap_ci(B) and t_interval(form(B)) == t_interval(B)
    assert multiple_comparison_correction(form([0.01, 0.2]))[0] == pytest.approx([0.02, 0.2])
    assert (
        StatisticalReport(form(A)).add_comparison("x", form(B)).generate()
        == StatisticalReport(A).add_comparison("x", B).generate()
    )


def test_integers_are_numbers():
    assert paired_comparison([1, 2, 3, 5], [2, 4, 5, 9]).difference == 2.25
    assert bootstrap_ci([1, 2, 3]).estimate == 2 and t_interval([1, 2, 3])[0] < 2


def test_tables_of_other_seeds_are_not_paired():
    a, b = pd.Series(A, index=[0, 1, 2, 3, 4]), pd.Series(B, index=[1, 0, 2, 3, 4])
    with pytest.raises(ValueError, match="different seeds"):
        paired_comparison(a, b)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: paired_comparison([1, 2], [1]), "2 in a and 1 in b"),
        (lambda: paired_comparison([1, 2, 3], [1, np.inf, 3]), "b\\[1\\] is infinite"),
        (lambda: paired_comparison(["x"], [1]), "expected numbers"),
        (lambda: paired_comparison(np.zeros((2, 3)), np.zeros((2, 3))), "one number per seed"),
        (lambda: paired_comparison(A, B, test_type="mcnemar"), "must be one of auto"),
        (lambda: bootstrap_ci([]), "no values"),
        (lambda: bootstrap_ci(A, n_resamples=0), "at least 1"),
        (lambda: bootstrap_ci(A, method="studentized"), "must be one of"),
        (lambda: t_interval(A, 95), "between 0 and 1"),
        (lambda: multiple_comparison_correction([-0.1]), "not between 0 and 1"),
        (lambda: multiple_comparison_correction([0.1], alpha=0), "alpha=0"),
        (lambda: max_t([[np.inf, 1]]), "infinite"),
        (lambda: crossed_bootstrap([[1, 0]]), "1 seeds cannot tell"),
        (lambda: crossed_t_interval([[1], [0]]), "1 questions cannot tell"),
        (lambda: variance_components([[1, np.nan], [0, 1]]), "missing or infinite"),
        (lambda: power_analysis(0), "needs an effect"),
        (lambda: power_analysis(0.5, power=0.01), "power=0.01"),
        (lambda: equal_accuracy_ratio([1, 2], [[0.1, 0.2]], 1, [0.1, 0.2]), "a row for each of 2"),
    ],
)
def test_invalid_input_raises_a_value_error_that_names_it(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "a, b, n, dropped",
    [
        ([], [], 0, 0),
        ([0.5], [0.6], 1, 0),
        ([0.5, np.nan], [np.nan, 0.6], 0, 2),
        ([0.5, 0.6], [0.7, 0.7], 2, 0),
        ([0.5, 0.6, np.nan], [0.7, 0.7, 0.1], 2, 1),
    ],
)
def test_too_few_pairs_give_an_estimate_and_no_test(a, b, n, dropped):
    r = paired_comparison(a, b)
    assert (r.n, r.n_dropped, r.significant) == (n, dropped, False)
    assert np.isnan([r.p_value, r.p_t, r.p_wilcoxon, r.p_flip]).all()
    assert np.isnan(r.difference) == (n == 0)


def test_equal_differences_are_equal():
    """Differences of .1 from different values differ in the last bits, and count as ties."""
    steps = np.array([1, 1, 1, -1, 1, 2, 1, -1])
    a = np.array([0.1, 0.2, 0.7, 0.8, 0.3, 0.9, 0.4, 0.6])
    assert len(set(steps / 10 + a - a)) > 3
    tenths, whole = paired_comparison(a, a + steps / 10), paired_comparison(np.zeros(8), steps)
    for field in ("p_wilcoxon", "p_flip", "rank_biserial"):
        assert getattr(tenths, field) == pytest.approx(getattr(whole, field), abs=1e-12)


def test_a_constant_difference_of_large_scores_is_degenerate_too():
    a = 1e6 * np.array([1.1, 2.3, 3.7, 4.9])
    r = paired_comparison(a, a + 0.1)
    assert r.degenerate and np.isnan(r.p_t) and r.p_flip == 0.125


def test_nothing_changed():
    r = paired_comparison(A, A)
    assert (
        r.p_value,
        r.p_t,
        r.p_wilcoxon,
        r.p_flip,
        r.effect_size,
        r.g_av,
        r.rank_biserial,
        r.significant,
        r.degenerate,
    ) == (1, 1, 1, 1, 0, 0, 0, False, False)
    assert (max_t(np.zeros((6, 2)))[0] == 1).all()


def test_random_results_depend_on_the_generator_alone():
    x = np.random.default_rng(0).normal(size=50)
    d = np.random.default_rng(1).normal(0.2, 1, (50, 3))
    np.random.seed(1)
    one = (
        bootstrap_ci(x, rng=4),
        sign_flip_p(x, rng=4),
        max_t(d, rng=4)[0].tolist(),
        crossed_bootstrap(d, rng=4),
    )
    np.random.seed(2)
    other = (
        bootstrap_ci(x, rng=np.random.default_rng(4)),
        sign_flip_p(x, rng=np.random.default_rng(4)),
        max_t(d, rng=np.random.default_rng(4))[0].tolist(),
        crossed_bootstrap(d, rng=np.random.default_rng(4)),
    )
    assert one == other and bootstrap_ci(x, rng=5) != one[0]


def test_a_significant_gain_below_the_smallest_effect_is_called_too_small():
    """It is supported, and the explanation says that it is less than what would matter.

    The explanation does not say so where the interval reaches what matters, nor for a loss.
    """
    a, noise = np.linspace(0.5, 0.6, 12), 0.001 * np.arange(12) / 12
    rows = []
    for gain in (0.01, 0.1, -0.1):
        report = StatisticalReport(a).add_comparison("b", a + gain + noise)
        rows += report.to_dict()["comparisons"]
    assert [row["verdict"] for row in rows] == ["supported", "supported", "not supported"]
    too_small = ["less than the 0.05 that would matter" in row["explanation"] for row in rows]
    assert too_small == [True, False, False]
