"""Shell completion scripts, made from the argument parsers themselves."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

PROGRAMS = ("convert", "model-convert")


def script(shell: str, parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    """A completion script for `shell` ("bash", "zsh" or "fish"); `parsers` by command, "" for none."""
    return _SHELLS[shell](parsers)


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    return [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]


def _bash(parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    cases = "\n".join(f"    {name}) flags='{' '.join(_flags(parser))}' ;;" for name, parser in parsers.items() if name)
    commands = " ".join(name for name in parsers if name)
    return f"""_model_convert() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} flags commands=
  case ${{COMP_WORDS[1]}} in
{cases}
    *) flags='{" ".join(_flags(parsers[""]))}' ;;
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


def _zsh(parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    return "autoload -U bashcompinit && bashcompinit\n" + _bash(parsers)


def _fish(parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    lines = []
    for program in PROGRAMS:
        commands = [name for name in parsers if name]
        lines.append(f"complete -c {program} -n __fish_use_subcommand -a '{' '.join(commands)}'")
        for name, parser in parsers.items():
            condition = f"__fish_seen_subcommand_from {name}" if name else "__fish_use_subcommand"
            lines += [f"complete -c {program} -n '{condition}' -l {flag[2:]}" for flag in _flags(parser)]
    return "\n".join(lines)


_SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
