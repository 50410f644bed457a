"""`compute.deepspeed: PATH` of a run file or a profile -> the options themselves, where the file is loaded.

So what travels, and what a pod reads, needs no file; a run that is handed in otherwise (an AlignmentRun) names none.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from alignment.config.stages.fields import on_this_machine
from alignment.config.yaml_file import read_text
from alignment.config.yaml_nodes import child
from alignment.config.yaml_text import compose, dump
from alignment.errors import ConfigError, ConfigErrors

_CODE = Path(__file__).resolve().parents[2]


def spell_out(tree: yaml.MappingNode) -> None:
    """Put the content of the options' file in place of its path. Does nothing where options stand already.

    Raises:
        ConfigErrors: the file cannot be read, or holds no mapping.
    """
    compute = child(tree, "compute")
    given = child(compute, "deepspeed")
    if not isinstance(compute, yaml.MappingNode) or not isinstance(given, yaml.ScalarNode) or not given.value or (
            given.tag != "tag:yaml.org,2002:str"):
        return
    path = on_this_machine(given.value)
    if not path.is_file() and (_CODE / path).is_file():  # configs/deepspeed/ beside the installed code
        path = _CODE / path
    text = read_text(path, "DeepSpeed options")
    if path.suffix == ".json":
        try:
            text = dump(json.loads(text))
        except ValueError as error:
            raise ConfigErrors([ConfigError(f"the DeepSpeed options file is no JSON: {error}", where=str(path))]
                               ) from error
    options = compose(text, str(path))
    if not isinstance(options, yaml.MappingNode):
        raise ConfigErrors([ConfigError("a file of DeepSpeed options holds a mapping", where=str(path),
                                        expected="zero_optimization: {...}")])
    compute.value = [(key, options if value is given else value) for key, value in compute.value]
