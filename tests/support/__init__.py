"""What tests share: models, files made by hand, oracles."""
