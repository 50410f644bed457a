"""`kubealign preflight`: what would fail on a cluster, found before a run is sent there. Changes nothing that lasts."""
