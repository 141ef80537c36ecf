"""Training: fits one model for a trial."""
