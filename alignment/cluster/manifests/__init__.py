"""What is sent to a cluster, as plain dicts: a stage's RayJob and its pods, the bundle's ConfigMap, small Jobs with
the storage at hand, an AlignmentRun. Pure; speaks to no cluster.
"""
