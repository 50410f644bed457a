"""What can be written, read and asked for, as a reference: keys, formats, functions, metrics, events, templates.

    make reference                     docs/reference/ anew (python -m alignment.reference docs/reference)
    kubealign explain sft.strategy     the same in a terminal

Everything is taken from the code that obeys it; what no code says in one place (metrics, events, the fields of a
format) is declared here in a table, and a test holds the table to what is really emitted and read. A room of its own
below the CLI: it reads config, importers, rewards and templates alike, and none of them should know how it is
described. Never imports torch, reads no run and no store.
"""
