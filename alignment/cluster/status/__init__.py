"""What the API server's objects say of themselves: how a RayJob stands or ended, why a pod does not run. Pure: plain
dicts in, facts and words out.
"""
