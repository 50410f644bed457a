"""The only room that knows Ray: Train's workers, Data's actor pools, and the cluster they run on."""
