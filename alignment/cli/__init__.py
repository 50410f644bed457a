"""The `kubealign` command. Thin: every sub-command reads a run file, calls one room, and shows what came back.

Heavy libraries are imported by the stages that need them, never here: `--help` and `check` take well under a
second on a machine without torch.
"""
