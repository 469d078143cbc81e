"""Numbers that JSON has no word for."""

from __future__ import annotations

import math

from converter.storage.json import finite


def test_what_json_has_no_word_for_becomes_null() -> None:
    value = {"nan": math.nan, "list": [1, -math.inf, 0.5], "tuple": (math.inf, "inf"), "inner": {"flag": True}}
    assert finite(value) == {"nan": None, "list": [1, None, 0.5], "tuple": [None, "inf"], "inner": {"flag": True}}
    assert finite(math.inf) is None and finite(1.5) == 1.5
