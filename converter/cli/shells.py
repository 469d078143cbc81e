"""Completion scripts for bash, zsh, fish and PowerShell: what `completion` finds, in each shell's own words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from converter.cli import verbs
from converter.cli.completion import Choice, Command

PROGRAMS = ("convert", "model-convert")


def script(shell: str, commands: Sequence[Command]) -> str:
    """A completion script for `shell` (of SHELLS)."""
    return SHELLS[shell](commands)


def _places(commands: Iterable[Command]) -> dict[tuple[tuple[str, ...], Choice], list[str]]:
    """Options that take the same, and the verbs that have them."""
    found: dict[tuple[tuple[str, ...], Choice], list[str]] = {}
    for command in commands:
        for flag in command.flags:
            if flag.choice is not None:
                found.setdefault((flag.spellings, flag.choice), []).append(command.name)
    return found


def _long(command: Command) -> list[str]:
    return [each for flag in command.flags for each in flag.spellings if each.startswith("--")]


def _named(commands: Sequence[Command]) -> list[Command]:
    """Those that can be written; the default verb has no name."""
    return [command for command in commands if command.name != verbs.DEFAULT]


def _cases(commands: Sequence[Command], body: Callable[[Choice], str]) -> Iterator[str]:
    """Arms of a `case` over `VERB:OPTION` in bash and zsh."""
    for (spellings, choice), names in _places(commands).items():
        yield f"    {'|'.join(f'{name}:{each}' for name in names for each in spellings)}) {body(choice)} ;;"


# ------------------------------------------------------------------------------------------------------- bash


def _bash(commands: Sequence[Command]) -> str:
    named = " ".join(command.name for command in _named(commands))
    flags = "\n".join(f"    {command.name}) flags='{' '.join(_long(command))}' ;;" for command in commands)
    places = "\n".join(f"    {each.name}) {_bash_choice(each.arguments)} ;;" for each in commands)
    return f"""_model_convert_files() {{  # WORD [ENDING...]: folders, and files that end so; all where none does
  local name ending
  while IFS= read -r name; do
    if [[ -d $name || $# == 1 ]]; then
      COMPREPLY+=("$name")
    else
      for ending in "${{@:2}}"; do
        if [[ $name == *"$ending" ]]; then COMPREPLY+=("$name"); fi
      done
    fi
  done < <(compgen -f -- "$1")
  if [[ ${{#COMPREPLY[@]}} == 0 && $# != 1 ]]; then _model_convert_files "$1"; fi
}}
_model_convert_words() {{  # PREFIX WORD VALUES
  local values=$3
  case $2 in *[[:upper:]]*) values=$(tr '[:lower:]' '[:upper:]' <<<"$values") ;; esac
  COMPREPLY=($(compgen -P "$1" -W "$values" -- "$2"))
}}
_model_convert() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} verb={verbs.DEFAULT} flags name
  COMPREPLY=()
  if [[ $word == '=' ]]; then word=; elif [[ $before == '=' ]]; then before=${{COMP_WORDS[COMP_CWORD-2]}}; fi
  if [[ $COMP_CWORD -gt 1 && ' {named} ' == *" ${{COMP_WORDS[1]}} "* ]]; then verb=${{COMP_WORDS[1]}}; fi
  case $verb:$before in
{chr(10).join(_cases(commands, _bash_option))}
  esac
  case $verb in
{flags}
  esac
  if [[ $word == -* ]]; then
    COMPREPLY=($(compgen -W "$flags" -- "$word"))
    return
  fi
  if [[ $COMP_CWORD == 1 ]]; then COMPREPLY=($(compgen -W '{named}' -- "$word")); fi
  case $verb in
{places}
  esac
}}
complete -o filenames -F _model_convert {" ".join(PROGRAMS)}"""


def _bash_choice(choice: Choice) -> str:
    if choice.words:
        return f"_model_convert_words '' \"$word\" '{' '.join(choice.words)}'"
    if choice.folders:
        return 'while IFS= read -r name; do COMPREPLY+=("$name"); done < <(compgen -d -- "$word")'
    return f'_model_convert_files "$word" {" ".join(choice.endings)}'.rstrip() if choice.files else ":"


def _bash_option(choice: Choice) -> str:
    body = _bash_choice(choice)
    if choice.several:
        body = "name=; if [[ $word == *,* ]]; then name=${word%,*},; fi; " + body.replace(
            "'' \"$word\"", '"$name" "${word##*,}"'
        )
    return f"{body}; return"


# -------------------------------------------------------------------------------------------------------- zsh


def _zsh(commands: Sequence[Command]) -> str:
    named = _named(commands)
    flags = "\n".join(f"    {each.name}) flags=({_zsh_flags(each)}) ;;" for each in commands)
    places = "\n".join(f"    {each.name}) {_zsh_choice(each.arguments)} ;;" for each in commands)
    return f"""#compdef {" ".join(PROGRAMS)}
_model_convert() {{
  local verb={verbs.DEFAULT} before=$words[CURRENT-1]
  local -a flags commands
  commands=({" ".join(_zsh_entry(each.name, each.help) for each in named)})
  if (( CURRENT > 2 )) && [[ ' {" ".join(each.name for each in named)} ' == *" $words[2] "* ]]; then verb=$words[2]; fi
  if [[ $words[CURRENT] == --*=* ]]; then
    before=${{words[CURRENT]%%=*}}
    compset -P '*='
  fi
  case $verb:$before in
{chr(10).join(_cases(commands, lambda choice: f"{_zsh_choice(choice)}; return"))}
  esac
  case $verb in
{flags}
  esac
  if [[ $words[CURRENT] == -* ]]; then
    _describe -o option flags
    return
  fi
  if (( CURRENT == 2 )); then _describe command commands; fi
  case $verb in
{places}
  esac
}}
if (( ! $+functions[compdef] )); then autoload -U compinit && compinit; fi
compdef _model_convert {" ".join(PROGRAMS)}"""


def _zsh_entry(name: str, help: str) -> str:
    return "'" + f"{name}:{help}".replace("'", "'\\''") + "'"


def _zsh_flags(command: Command) -> str:
    return " ".join(
        _zsh_entry(each, flag.help.replace(":", "\\:"))
        for flag in command.flags
        for each in flag.spellings
        if each.startswith("--")
    )


def _zsh_choice(choice: Choice) -> str:
    if choice.words:
        commas = "compset -P '*,'; " if choice.several else ""
        return f"{commas}compadd -M 'm:{{[:upper:]}}={{[:lower:]}}' -- {' '.join(choice.words)}"
    if choice.folders:
        return "_files -/"
    if not choice.files:
        return ":"
    if len(choice.endings) == 1:  # brackets around one would be a qualifier of the pattern
        return f"_files -g '*{choice.endings[0]}'"
    return f"_files -g '(*{'|*'.join(choice.endings)})'" if choice.endings else "_files"


# ------------------------------------------------------------------------------------------------------- fish


def _fish(commands: Sequence[Command]) -> str:
    named = " ".join(command.name for command in _named(commands))
    lines = [
        "function __model_convert_verb  # VERB...: whether the command line has one of these",
        "  set -l words (commandline -opc)",
        f"  set -l verb {verbs.DEFAULT}",
        f"  if set -q words[2]; and contains -- $words[2] {named}; set verb $words[2]; end",
        "  contains -- $verb $argv",
        "end",
    ]
    flags: dict[tuple[tuple[str, ...], str, Choice | None], list[str]] = {}
    for command in commands:
        for flag in command.flags:
            flags.setdefault(flag, []).append(command.name)
    for program in PROGRAMS:
        lines.append(f"complete -c {program} -f")
        for command in _named(commands):
            first = "test (count (commandline -opc)) -eq 1"
            lines.append(f"complete -c {program} -n '{first}' -a {command.name} -d {_fish_text(command.help)}")
        for command in commands:
            if given := _fish_choice(command.arguments):
                lines.append(f"complete -c {program} -n '__model_convert_verb {command.name}' {given}")
        for (spellings, help, choice), owners in flags.items():
            names = " ".join(f"-l {each[2:]}" if each.startswith("--") else f"-s {each[1:]}" for each in spellings)
            given = "" if choice is None else _fish_choice(choice)
            takes = "" if choice is None else f" -r {given}" if given == "-F" else f" -x {given}".rstrip()
            condition = f"-n '__model_convert_verb {' '.join(owners)}'"
            lines.append(f"complete -c {program} {condition} {names}{takes} -d {_fish_text(help)}")
    return "\n".join(lines)


def _fish_text(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _fish_choice(choice: Choice) -> str:
    words = " ".join(choice.words)
    if choice.several:
        return f"-a '(__fish_complete_list , \"printf %s\\\\\\\\n {words}\")'"
    if choice.words:
        return f"-a '{words}'"
    if choice.folders:
        return "-a '(__fish_complete_directories)'"
    if not choice.files:
        return ""
    return f"-k -a '(__fish_complete_suffix {' '.join(choice.endings)})'" if choice.endings else "-F"


# ------------------------------------------------------------------------------------------------- PowerShell


def _powershell(commands: Sequence[Command]) -> str:
    named = ", ".join(_quoted(each.name) for each in _named(commands))
    flags = "\n".join(f"    {_quoted(each.name)} = @({', '.join(map(_quoted, _long(each)))})" for each in commands)
    values = "\n".join(
        f"    {_quoted(f'{name}:{each}')} = {_powershell_choice(choice)}"
        for (spellings, choice), names in _places(commands).items()
        for name in names
        for each in spellings
    )
    places = "\n".join(f"    {_quoted(each.name)} = {_powershell_choice(each.arguments)}" for each in commands)
    programs = ", ".join(map(_quoted, PROGRAMS))
    return f"""$global:ModelConvert = @{{
  Commands = @({named})
  Flags = @{{
{flags}
  }}
  Values = @{{
{values}
  }}
  Places = @{{
{places}
  }}
}}
Register-ArgumentCompleter -Native -CommandName {programs} -ScriptBlock {{
  param($word, $line, $cursor)
  $words = @($line.CommandElements | Where-Object {{ $_.Extent.EndOffset -lt $cursor }} | ForEach-Object {{ "$_" }})
  $verb = if ($words.Count -gt 1 -and $ModelConvert.Commands -contains $words[1]) {{ $words[1] }} else {{ {_quoted(verbs.DEFAULT)} }}
  $prefix = ''
  $choice = if ($words.Count -gt 1) {{ $ModelConvert.Values["${{verb}}:$($words[-1])"] }}
  if ($null -ne $choice) {{
    if ($choice.Several -and $word -match '^(.*,)([^,]*)$') {{ $prefix, $word = $Matches[1], $Matches[2] }}
    $found = $choice.Words
  }} elseif ($word -like '-*') {{
    $found = $ModelConvert.Flags[$verb]
  }} else {{
    $choice = $ModelConvert.Places[$verb]
    $found = @($choice.Words) + @(if ($words.Count -eq 1) {{ $ModelConvert.Commands }})
  }}
  $found | Where-Object {{ $_ -like "$word*" }} | ForEach-Object {{
    [System.Management.Automation.CompletionResult]::new("$prefix$_", $_, 'ParameterValue', $_)
  }}
  if ($choice.Files -and $word -notlike '-*') {{
    Get-ChildItem -Path "$word*" | Where-Object {{
      $_.PSIsContainer -or -not $choice.Endings -or $choice.Endings -contains $_.Extension
    }} | ForEach-Object {{
      $folder = Split-Path "$word."
      $path = if ($folder) {{ Join-Path $folder $_.Name }} else {{ $_.Name }}
      $text = if ($path -match ' ') {{ "'$path'" }} else {{ $path }}
      [System.Management.Automation.CompletionResult]::new($text, $_.Name, 'ProviderItem', $path)
    }}
  }}
}}"""  # noqa: E501


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _powershell_choice(choice: Choice) -> str:
    words, endings = (", ".join(map(_quoted, each)) for each in (choice.words, choice.endings))
    several, files = (str(each).lower() for each in (choice.several, choice.files or choice.folders))
    return f"@{{ Words = @({words}); Several = ${several}; Files = ${files}; Endings = @({endings}) }}"


SHELLS: Mapping[str, Callable[[Sequence[Command]], str]] = {
    "bash": _bash,
    "zsh": _zsh,
    "fish": _fish,
    "powershell": _powershell,
}
