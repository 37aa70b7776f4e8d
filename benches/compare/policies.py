"""A policy directory with the shipped `rules` module and as many rules as wanted."""

import pathlib
import shutil

SHIPPED = pathlib.Path(__file__).parents[2] / "policies/rules.wasm"
MANIFEST = '[[policy]]\nname = "rules"\nmodule = "rules.wasm"\nsettings = "rules.toml"\n'


def rule(name, binding, pattern):
    return (f'[[policy]]\nname = "{name}"\nbindings = ["{binding}"]\n[[policy.rules]]\n'
            f'path_pattern = "{pattern}"\npermissions = ["read", "write", "list"]\n')


def write(directory, rules):
    """Ten rules permit what the load asks for. The others are about other places; one in ten about a group that asks."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(SHIPPED, directory / "rules.wasm")
    (directory / "policies.toml").write_text(MANIFEST)
    settings = [rule(f"bench-{n}", "sa:bench", f"bench/g{n}/**") for n in range(10)]
    settings += [rule(f"team-{n}", f"group:g{n % 10}", f"teams/team-{n}/**") for n in range(10, rules)]
    (directory / "rules.toml").write_text("".join(settings))
