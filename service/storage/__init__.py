"""Optuna's storage on PostgreSQL: studies, trials, leases, and what other processes have written."""
