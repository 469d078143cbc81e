"""Shell completion scripts, made from the argument parsers themselves."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

PROGRAMS = ("convert", "model-convert")


def script(shell: str, default: argparse.ArgumentParser, parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    """A completion script for `shell` (of SHELLS); `parsers` by verb, `default` is that of none."""
    return SHELLS[shell](default, parsers)


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    return [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]


def _bash(default: argparse.ArgumentParser, parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    cases = "\n".join(f"    {name}) flags='{' '.join(_flags(parser))}' ;;" for name, parser in parsers.items())
    commands = " ".join(parsers)
    return f"""_model_convert() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} flags commands=
  case ${{COMP_WORDS[1]}} in
{cases}
    *) flags='{" ".join(_flags(default))}' ;;
  esac
  if [[ $word == -* ]]; then
    COMPREPLY=($(compgen -W "$flags" -- "$word"))
    return
  fi
  if [[ $COMP_CWORD == 1 ]]; then
    commands=$(compgen -W '{commands}' -- "$word")
  fi
  local IFS=$'\\n'
  COMPREPLY=($commands $(compgen -f -- "$word"))
}}
complete -o filenames -F _model_convert {" ".join(PROGRAMS)}"""


def _zsh(default: argparse.ArgumentParser, parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    return "autoload -U bashcompinit && bashcompinit\n" + _bash(default, parsers)


def _fish(default: argparse.ArgumentParser, parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    lines = []
    for program in PROGRAMS:
        lines.append(f"complete -c {program} -n __fish_use_subcommand -a '{' '.join(parsers)}'")
        conditions = {f"__fish_seen_subcommand_from {name}": parser for name, parser in parsers.items()}
        for condition, parser in {"__fish_use_subcommand": default, **conditions}.items():
            lines += [f"complete -c {program} -n '{condition}' -l {flag[2:]}" for flag in _flags(parser)]
    return "\n".join(lines)


SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
