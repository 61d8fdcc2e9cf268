"""The statistics against pingouin and statsmodels.

The numbers are the same where those are right; where they are not, both answers are shown.
"""

import warnings

import numpy as np
import pingouin
import pytest
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower, TTestPower

from zeromodel.evaluation.statistical_tests import (
    bootstrap_ci,
    multiple_comparison_correction,
    paired_comparison,
    power_analysis,
    power_curve,
)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("n", [3, 5, 8, 12, 25, 40])
def test_comparisons(n):
    rng = np.random.default_rng(n)
    for _ in range(5):
        a, b = rng.normal(0.7, 0.1, n), rng.normal(0.75, 0.05, n)
        r = paired_comparison(a, b)
        t = pingouin.ttest(b, a, paired=True).iloc[0]
        w = pingouin.wilcoxon(b, a).iloc[0]
        assert (r.p_t, abs(r.d_av), r.p_wilcoxon, r.rank_biserial) == pytest.approx(
            (t["p_val"], t["cohen_d"], w["p_val"], w["RBC"]), abs=1e-9
        )
        # pingouin rounds to two digits
        assert (r.lower, r.upper) == pytest.approx(tuple(t["CI95"]), abs=0.0051)
        assert r.d_av == pytest.approx(pingouin.compute_effsize(b, a, paired=True, eftype="cohen"))


@pytest.mark.parametrize(
    "ours, theirs",
    [("holm", "holm"), ("bonferroni", "bonferroni"), ("bh", "fdr_bh"), ("fdr_bh", "fdr_bh")],
)
def test_corrections(ours, theirs):
    rng = np.random.default_rng(0)
    for m in (1, 2, 7, 40):
        p = rng.beta(0.5, 2, m)
        adjusted, significant = multiple_comparison_correction(p, ours)
        reject, expected, *_ = multipletests(p, method=theirs)
        assert adjusted == pytest.approx(expected) and significant.tolist() == reject.tolist()
        p[rng.integers(m)] = np.nan
        assert multiple_comparison_correction(p, ours)[0] == pytest.approx(
            pingouin.multicomp(p, method=theirs)[1], nan_ok=True
        )


def test_statsmodels_counts_a_test_that_was_not_made():
    p = [0.01, 0.03, np.nan, 0.04]
    assert multiple_comparison_correction(p, "holm")[0] == pytest.approx(
        [0.03, 0.06, np.nan, 0.06], nan_ok=True
    )
    assert multipletests(p, method="holm")[1] == pytest.approx(
        [0.04, 0.09, np.nan, 0.09], nan_ok=True
    )
    assert multiple_comparison_correction(p, "bonferroni")[0][0] == 0.03
    assert multipletests(p, method="bonferroni")[1][0] == pytest.approx(0.04)


@pytest.mark.parametrize(
    "paired, peer, contrast",
    [(True, TTestPower(), "paired"), (False, TTestIndPower(), "two-samples")],
)
@pytest.mark.parametrize(
    "alternative, name", [("two-sided", "two-sided"), ("greater", "larger"), ("less", "smaller")]
)
def test_power(paired, peer, contrast, alternative, name):
    sign = -1 if alternative == "less" else 1
    for d in (0.2, 0.5, 1.0, 1.7):
        for n in (3, 8, 30):
            ours = power_curve(sign * d, n, 0.05, paired, alternative)
            if d * n < 20:
                assert ours == pytest.approx(
                    peer.power(sign * d, n, 0.05, alternative=name), abs=1e-9
                )
            assert ours == pytest.approx(
                pingouin.power_ttest(d=sign * d, n=n, contrast=contrast, alternative=alternative),
                abs=1e-9,
            )
        r = power_analysis(sign * d, 0.05, 0.8, paired, alternative)
        assert r["n_exact"] == pytest.approx(
            pingouin.power_ttest(d=sign * d, power=0.8, contrast=contrast, alternative=alternative),
            rel=1e-6,
        )
        if d < 1.7:
            assert r["n_exact"] == pytest.approx(
                peer.solve_power(sign * d, alpha=0.05, power=0.8, alternative=name), rel=1e-5
            )


def test_statsmodels_solver_is_wrong_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = TTestPower().solve_power(effect_size=5, alpha=0.05, power=0.9)
    assert power_curve(5, theirs) < 0.7  # what was asked for is .9
    ours = power_analysis(5, power=0.9)
    assert power_curve(5, ours["n_exact"]) == pytest.approx(0.9) and ours["achieved_power"] >= 0.9
    assert ours["n_exact"] == pytest.approx(
        pingouin.power_ttest(d=5, power=0.9, contrast="paired"), rel=1e-6
    )


def test_pingouins_small_sample_correction_counts_the_pairs_twice():
    a, b = [0.72, 0.75, 0.71, 0.73, 0.74], [0.81, 0.83, 0.79, 0.82, 0.80]
    # n - 1 = 4 degrees of freedom, exact
    assert paired_comparison(a, b).g_av == pytest.approx(4.037012)
    # 2n - 2, approximate
    assert pingouin.compute_effsize(b, a, paired=True, eftype="hedges") == pytest.approx(
        5.059644 * (1 - 3 / (4 * 10 - 9))
    )


def test_bootstrap():
    x = np.random.default_rng(0).exponential(size=40)
    for method, theirs in [("bca", "bca"), ("percentile", "per"), ("basic", "basic")]:
        lower, upper = pingouin.compute_bootci(
            x, func="mean", method=theirs, n_boot=20_000, seed=1, decimals=6
        )
        r = bootstrap_ci(x, method=method, n_resamples=20_000, rng=1)
        assert (r.lower, r.upper) == pytest.approx((lower, upper), abs=0.06 * (upper - lower))
