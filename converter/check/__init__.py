"""One model by itself, before a deploy: sound or not."""
