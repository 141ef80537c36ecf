-- Delete a leased trial's reports from p_step on. Readers cannot see a deleted row, so the trial's
-- own row is rewritten, which makes them read the trial again.
-- An attempt deletes once: a network may deliver the first sending after a second one was answered,
-- and by then the attempt may have reported. If the attempt starts at p_step already, either it has
-- deleted, or there was nothing to delete.
CREATE OR REPLACE FUNCTION service.delete_reports(p_trial int, p_token bigint, p_step int)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  verdict text := service.check_write(p_trial, p_token);
BEGIN
  IF verdict = 'ok' THEN
    UPDATE service.attempts a SET first_epoch = p_step FROM service.leases l
     WHERE l.trial_id = p_trial AND (a.trial_id, a.attempt) = (l.trial_id, l.attempt)
       AND a.first_epoch <> p_step;
    IF NOT FOUND THEN
      RETURN verdict;
    END IF;
    UPDATE service.attempts a SET epochs = greatest(epochs, p_step - first_epoch)
      FROM service.leases l
     WHERE l.trial_id = p_trial AND (a.trial_id, a.attempt) = (l.trial_id, l.attempt - 1);
    DELETE FROM trial_intermediate_values WHERE trial_id = p_trial AND step >= p_step;
    IF FOUND THEN
      UPDATE trials SET state = state WHERE trial_id = p_trial;
    END IF;
  END IF;
  RETURN verdict;
END $$;
