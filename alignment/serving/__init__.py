"""Serving: models of artifacts behind OpenAI's protocol, which prove what they are before they answer anybody.

    refused, shapes, strict_json    errors and requests as OpenAI has them          plain
    compared           what a recorded row and a served answer may differ by        plain
    hosts              which addresses are this machine's alone, and what an API key is  plain
    records            which rows a model is held to, and where they come from
    service            models, their engines, their state; limits; draining
    growing, calls     text that grows with tokens; calls of tools in it
    answering          a request to an engine and its tokens back, cancelled when nobody waits
    chat, completions, embeddings, scores, votes    the calls
    proving            asks the recorded rows by the very path that everybody takes
    draining           the end of a pod: clients are answered, and sent elsewhere
    opened             from artifacts to a service: records, dtype
    revive             an engine that ended is started again, and proved again
    door, wire         who is let in; what uvicorn leaves open of HTTP
    streams            answers that are told as they are made
    openapi            what may be asked, from the classes that read it
    app                all of it as one ASGI application: what uvicorn runs here, and each replica on Ray Serve
    run                `kubealign serve`: the socket, the server, its end

Token ids are `templates`' own, never the server's. Loads no weights itself: `inference.live` does.
"""
