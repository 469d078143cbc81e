"""Which type each tensor gets, and what turns numbers into it."""
