"""Profile by name or path -> `Profile`, with every finding at its line.

A name is looked for in configs/profiles/ of the working directory, then beside the installed code. Does not look at
a cluster.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from alignment.config.deepspeed_file import spell_out
from alignment.config.messages import close_to
from alignment.config.profile import Profile
from alignment.config.yaml_file import parse_override, parse_tree, read_text, set_value, validated
from alignment.errors import ConfigError, ConfigErrors

_FOLDER = Path("configs") / "profiles"
_SHIPPED = Path(__file__).resolve().parents[2] / _FOLDER


def load_profile(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Profile:
    """Read, override and check a profile.

    Args:
        name_or_path: `dev-cpu`, or the path of a YAML file (with a slash, or ending in .yaml or .yml).
        overrides: `key=value` strings with dotted keys (`cluster.worker.memory=4Gi`); values are YAML.

    Raises:
        ConfigErrors: with one `ConfigError` (file, line, key, found, expected) per finding.
    """
    path = _find(str(name_or_path))
    _, node = parse_tree(read_text(path, "profile"), str(path), "profile", "name: ..., cluster: {...}")
    for override in overrides:
        parts, value = parse_override(override)
        if parts[0] not in Profile.model_fields:
            raise ConfigErrors([ConfigError("names no key of a profile", where=f"--set {override}",
                                            found=".".join(parts), expected=close_to(parts[0], Profile.model_fields))])
        set_value(node, parts, value, f"--set {override}")
    spell_out(node)
    return validated(Profile, node)


def _find(name: str) -> Path:
    if "/" in name or name.endswith((".yaml", ".yml")):
        return Path(name)
    folders = [_FOLDER, _SHIPPED]
    found = next((folder / f"{name}.yaml" for folder in folders if (folder / f"{name}.yaml").is_file()), None)
    if found is None:
        known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
        raise ConfigErrors([ConfigError(
            "no profile of this name", where="--profile", found=name,
            expected=close_to(name, known) if known else f"the path of a file: there is none in {_FOLDER}",
            hint=f"a file of your own is given by its path, ./{name}.yaml")])
    return found
