"""What was found, written for people and for programs: text, Markdown, JSON, JUnit, HTML."""
