"""Estimators of scikit-learn: Bayesian neural networks for tables, in the target's own units."""

from bnn.estimators.classifier import BayesianClassifier, BayesianModuleClassifier
from bnn.estimators.regressor import BayesianModuleRegressor, BayesianRegressor

__all__ = ["BayesianClassifier", "BayesianModuleClassifier", "BayesianModuleRegressor", "BayesianRegressor"]
