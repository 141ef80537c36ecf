"""GridSampler: Optuna's, which gives no point of the grid to two trials."""

from __future__ import annotations

import optuna
from optuna.samplers import GridSampler as OptunaGridSampler
from optuna.trial import TrialState


class GridSampler(OptunaGridSampler):
    """Optuna's `GridSampler` for workers that begin trials at the same time.

    In a grid of n points, trial i < n gets point i, and a later trial one that no other has.
    Optuna looks only at the points that trials have got already: the point of a trial that has a
    number, but has not been sampled yet, could go to two trials.
    """

    def _get_unvisited_grid_ids(self, study: optuna.Study) -> list[int]:
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
        taken = {
            trial.number
            for trial in trials
            if trial.state == TrialState.RUNNING
            and trial.number < self._n_min_trials
            and not trial.system_attrs.keys() & {"grid_id", "fixed_params"}
        }
        unvisited = super()._get_unvisited_grid_ids(study)
        return [point for point in unvisited if point not in taken] or unvisited
