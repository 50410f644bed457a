"""The vLLM engine: `Generator` over a process of its own in which vLLM runs (docs/engines.md).

    limits, launch   what vLLM cannot serve; what it is started with        plain
    generator        the engine as other rooms see it                       this process
    client, shared   starts, asks and ends the other process                this process
    server, sampler  hold vLLM, the only modules that import it             the other process

Imports nothing here, so that who asks for one of the first needs neither torch nor vLLM.
"""
