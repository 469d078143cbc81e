"""The verifier: what a conversion did to every tensor, the metadata and the tokenizer, and whether that is right."""
