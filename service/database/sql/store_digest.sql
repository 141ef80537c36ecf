-- Store a trial's digest, in the transaction that writes the trial. The column "shape" holds the
-- key of the trial's parameter space.
CREATE OR REPLACE FUNCTION service.store_digest(p_trial int)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO service.digests (trial_id, finished, shape, digest)
  SELECT trial_id, finished, space, digest FROM service.make_digests(ARRAY[p_trial])
  ON CONFLICT ON CONSTRAINT pk_digests DO UPDATE
     SET finished = excluded.finished, shape = excluded.shape, digest = excluded.digest;
END $$;
