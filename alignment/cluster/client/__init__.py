"""The connection to an API server: kubeconfig, requests, refusals in words, a forwarded port. Alone imports the
`kubernetes` package; preflight/capacity.py has its parser of quantities.
"""
