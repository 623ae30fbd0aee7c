"""Examinations that all members of a family sit.

A new member supplies how to make it and a problem with a known answer, and inherits the questions: ``solver.py`` for
functions that return an `OptimizeResult`, ``policy.py`` for Stable-Baselines3 algorithms; training optimisers have
``tests/optim/check_optimizer.py``; estimators scikit-learn's own ``check_estimator``.
"""
