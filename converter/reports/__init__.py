"""What was found, written for people and for programs: text, Markdown, JSON, JUnit, HTML.

`files` has the one table of what is written for which extension. A module for each kind of result (`verification`,
`comparison`, `checked`, `differences`) says what is shown; `json`, `junit`, `markdown` and `html` each know one format,
and escape what it gives a meaning to.
"""
