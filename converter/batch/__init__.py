"""Many models: what is to be done with each, all at once, with a report, going on after errors and where it stopped."""
