"""Chat templates: a model's own in Jinja, rendered, and the same in the language of Ollama, Go's text/template."""
