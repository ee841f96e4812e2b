"""Datamodels against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import Lasso, Ridge

from jaxunlearn.attribution import datamodels


@pytest.mark.parametrize(("n_members", "n"), [(300, 40), (60, 90)])
@pytest.mark.parametrize("penalty", [0.02, 0.1, 0.5])
def test_lasso_and_ridge(n_members, n, penalty):
    rng = np.random.default_rng(0)
    masks = rng.random((n_members, n)) < 0.4
    outputs = masks @ rng.normal(size=(n, 5)) + rng.normal(size=(n_members, 5)) + 3
    std = masks.std(0)
    x = (masks - masks.mean(0)) / std
    lasso = Lasso(alpha=penalty, tol=1e-10, max_iter=10**6).fit(x, outputs)
    found = datamodels.fit(masks, outputs, method="lasso", l1=penalty)
    np.testing.assert_allclose(found.weights * std[:, None], lasso.coef_.T, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.predict(masks), lasso.predict(x), rtol=0, atol=1e-3)
    ridge = Ridge(alpha=n_members * penalty).fit(x, outputs)
    found = datamodels.fit(masks, outputs, l2=penalty)
    np.testing.assert_allclose(found.weights * std[:, None], ridge.coef_.T, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.predict(masks), ridge.predict(x), rtol=0, atol=1e-5)
