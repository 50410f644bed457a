"""What the storage says of a run, read from here or by a small Job in the cluster; and the probe that tries it."""
