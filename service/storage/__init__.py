"""Optuna's storage on PostgreSQL: studies, trials, leases, and news of other processes."""
